"""`mediamill diff`: its figures are those of outputs whose differences are known."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.jobs.cli import main
from mediamill.pipeline.diff.buckets import BUCKET_ROWS
from mediamill.pipeline.ledger.log import HIDDEN, log_of
from mediamill.pipeline.storage import storage
from tests.jobs.report.results import HOSTILE, clip_file, failed, picture_file, row, write_result

ROWS = 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A, and B in another order: 8 texts changed, 1 row gone, 1 new, statuses exchanged."""
    folder = tmp_path_factory.mktemp("pair")
    picture, clip = picture_file(folder), clip_file(folder)

    def rows(is_b: bool) -> list[dict[str, Any]]:
        made = []
        for number in range(ROWS):
            text = f"a large red star over a small circle, number {number}"
            if is_b and number % 5 == 0:
                text = text.replace("large red", "small green")
            values = row(id=f"row-{number:02}", uri=picture, kind="ab"[number % 2], text=text)
            if is_b and number in (0, 1):
                values |= {"height": 56, "receipt": [{**values["receipt"][0], "height": 56}]}
            made.append(values)
        error = {"uri": picture, "kind": "a", "error_message": "<b>slow</b>"}
        ok = row(id="clip", uri=clip, kind="a", text=HOSTILE if is_b else "plain\x1b[31m \u202e")
        made.append(ok)
        if is_b:
            made.append(row(id="mended", uri=picture, kind="a", text="is there"))
            made.append(failed(id="broken", error_code="decode_corrupt", **error))
            made.append(row(id="new", uri=picture, kind="a", text="new"))
        else:
            made.append(failed(id="mended", error_code="fetch_timeout", **error))
            made.append(row(id="broken", uri=picture, kind="a", text="was there"))
            made.append(row(id="gone", uri=picture, kind="a", text="gone"))
        return made[::-1] if is_b else made

    return write_result(folder / "a", rows(False)), write_result(folder / "b", rows(True))


def difference(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main(["diff", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_figures_are_the_truth(pair, capsys):
    found = difference(capsys, *pair)
    assert found["differs"]
    assert found["rows"] == {
        "a": ROWS + 4, "b": ROWS + 4, "both": ROWS + 3, "ok_in_both": ROWS + 1,
        "only_a": 1, "only_b": 1, "duplicates_a": 0, "duplicates_b": 0,
    }  # fmt: skip
    assert found["examples"] == {"only_a": ["gone"], "only_b": ["new"]}
    statuses = {(s["a"], s["b"]): (s["rows"], s["examples"]) for s in found["statuses"]}
    assert statuses == {
        ("fetch_timeout", "ok"): (1, ["mended"]),
        ("ok", "decode_corrupt"): (1, ["broken"]),
    }
    assert found["answers"]["rows"] == found["answers"]["texts"]["text"]["rows"] == 9
    assert found["answers"]["explained"] == 1  # row-00, which was also seen at another size
    assert found["receipts"]["seen at another size"]["rows"] == 2
    assert not found["receipts"]["other pixels"]["rows"]
    shift = found["shifts"]["text.letters"]
    assert shift["rows"] == ROWS + 1
    assert shift["low"] <= shift["shift"] <= shift["high"]


def test_the_same_output_has_no_difference(pair, capsys):
    assert main(["diff", pair[0], pair[0], "--exit-code"]) == 0
    assert f"no differences: {ROWS + 4} rows" in capsys.readouterr().out
    assert main(["diff", *pair, "--exit-code"]) == 1
    assert main(["diff", *pair]) == 0


def test_words_are_marked_and_nothing_is_obeyed(pair, capsys):
    main(["diff", *pair, "--samples", "20"])
    text = capsys.readouterr().out
    assert "[-large red-] {+small green+}" in " ".join(text.split())
    assert "9 of 41 rows (22.0 %) have another answer" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "the same: columns" in text
    main(["diff", *pair, "--md", "--samples", "20"])
    marked = capsys.readouterr().out
    assert "<script>" not in marked.replace("\\<script\\>", "")
    lines = [line for line in marked.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {4, 7}


def test_the_page_shows_the_rows(pair, tmp_path, capsys):
    page = tmp_path / "diff.html"
    main(["diff", *pair, "--page", str(page)])
    assert f"page: {page}" in capsys.readouterr().out
    source = page.read_text(encoding="utf-8")
    assert source.count("<article") == 11
    assert source.count("<mark>") >= 16
    assert source.count("data:image/jpeg") >= 11
    assert "alert(1)</script>" not in source
    assert "&lt;b&gt;slow&lt;/b&gt;" in source


def test_settings_of_both_logs_are_compared(tmp_path, capsys):
    outputs = [write_result(tmp_path / name, [row(id="a", text="x")], False) for name in "ab"]
    for output, prompt in zip(outputs, ("What is it?", "What is that?"), strict=True):
        parts = {"job": "caption", "prompt": prompt, "image": {"max_pixels": len(prompt)}}
        record = {"kind": "open", "version": 2, "fingerprint": "f", "parts": parts}
        record |= {"layout": {"partition_by": [], "columns": {}}}
        log = log_of(storage.resolve(output)) / f"{1:012}.json"
        storage.put(log, json.dumps(record).encode())
        job = {"prompt": prompt, "output": output, "resources": {"replicas": len(prompt)}}
        note = json.dumps({"run": "r", "folder": "/", "redacted": [], "job": job}).encode()
        storage.put(storage.resolve(output) / HIDDEN / "job.json", note)
    found = difference(capsys, *outputs)
    assert {s["name"]: (s["a"], s["b"], s["decides"]) for s in found["settings"]} == {
        "prompt": ("What is it?", "What is that?", True),
        "image.max_pixels": ("11", "13", True),
        "resources.replicas": ("11", "13", False),
    }
    assert found["differs"]
    main(["diff", *outputs])
    assert "prompt: What is it? → What is that?" in capsys.readouterr().out


def test_ids_of_other_types_and_duplicates(tmp_path, capsys):
    columns = {"text": ["x", "y", "z", "z"], "status": ["ok"] * 4, "error_code": [None] * 4}
    for name, ids in (("a", [1, 2, 3, 3]), ("b", ["1", "2", "3", "4"])):
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.table({"id": ids, **columns}), folder / "part.parquet")
    found = difference(capsys, str(tmp_path / "a"), str(tmp_path / "b"))
    assert found["rows"]["both"] == 3
    assert found["rows"]["only_b"] == 1
    assert found["rows"]["duplicates_a"] == 1
    assert not found["answers"]["rows"]
    assert len(found["notes"]) == 3


def test_scores_and_vectors(tmp_path, capsys):
    scores = pa.list_(
        pa.struct([("text", pa.string()), ("rank", pa.int32()), ("probability", pa.float64())])
    )
    vectors = pa.list_(pa.float32())

    def write(name: str, best: str, vector: list[float]) -> str:
        ranked = [best, "yes" if best == "no" else "no"]
        value = [
            {"text": text, "rank": rank, "probability": 0.5} for rank, text in enumerate(ranked, 1)
        ]
        table = pa.table(
            {
                "id": ["a", "b", "c"],
                "status": ["ok", "ok", "error"],
                "error_code": [None, None, "media_empty"],
                "scores": pa.array([value, value[::-1], None], scores),
                "embedding": pa.array([vector, [1.0, 0.0], None], vectors),
            }
        )
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "part.parquet")
        return str(tmp_path / name)

    a, b = write("a", "yes", [1.0, 0.0]), write("b", "no", [0.0, 1.0])
    found = difference(capsys, a, b)
    assert found["scores"] == {"best": 2, "rankings": 2}
    assert found["vectors"]["rows"] == 1
    assert found["vectors"]["cosine_median"] == 0.5  # of 0 and 1
    same = write("c", "yes", [1.0, 0.0])
    assert not difference(capsys, a, same)["differs"]


def test_many_rows_are_joined_in_buckets(tmp_path, capsys):
    count = 3 * BUCKET_ROWS
    for name, start, step in (("a", 0, 1), ("b", count + 9, -1)):
        ids = [f"row-{start + step * number}" for number in range(count)]
        text = ["x" if i.endswith("7") and name == "b" else "y" for i in ids]
        table = pa.table({"id": ids, "text": text, "status": ["ok"] * count})
        table = table.append_column("error_code", pa.nulls(count, pa.string()))
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "part.parquet", row_group_size=20_000)
    found = difference(capsys, str(tmp_path / "a"), str(tmp_path / "b"))
    assert found["rows"]["both"] == count - 10
    assert found["rows"]["only_a"] == found["rows"]["only_b"] == 10
    changed = sum(str(number).endswith("7") for number in range(10, count))
    assert found["answers"]["rows"] == changed


def test_an_unknown_output_is_one_sentence(tmp_path: Path, capsys):
    assert main(["diff", str(tmp_path), str(tmp_path)]) == 2
    assert "expected an output" in capsys.readouterr().err


def test_outputs_in_a_bucket(pair, s3, capsys):
    for path in sorted(Path(pair[1]).rglob("*.parquet")):
        name = path.relative_to(pair[1]).as_posix()
        storage.put(storage.resolve(f"{s3}/diff-b") / name, path.read_bytes())
    assert not difference(capsys, pair[1], f"{s3}/diff-b")["differs"]
    assert difference(capsys, pair[0], f"{s3}/diff-b")["answers"]["rows"] == 9
