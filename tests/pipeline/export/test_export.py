"""Exports come back from real readers, go on after a kill, and export each row once."""

import csv
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.compact import compact
from mediamill.pipeline.export import source as source_module
from mediamill.pipeline.export.export import ExportOptions, export
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.export.world import add_run, error_row, picture_rows, row

HOSTILE = [
    "two\nlines\r\nand three",
    "quotes \" and, commas; 'single'",
    "NUL \0 inside",
    "   blanks   ",
    "",
    "#comment",
    "snowman ☃ 𝄞 \u2028 line separator",
    "=cmd()",
    "NULL",
    "\\N",
]


def run(output, target, to, **options):
    return export(ExportOptions(str(output), str(target), to, **options))


def json_lines(text):
    return [json.loads(line) for line in text.split("\n") if line]


@pytest.fixture
def output(tmp_path):
    rows = [row(number) for number in range(10)] + [error_row(10)]
    return add_run(tmp_path / "out", rows, partition_by=("kind",))


@pytest.fixture
def pictures(tmp_path):
    """An output about real pictures; of one row the file changed, of one it is gone."""
    rows = picture_rows(tmp_path / "photos", 7)
    Path(rows[3]["uri"]).write_bytes(Path(rows[4]["uri"]).read_bytes())
    Path(rows[5]["uri"]).unlink()
    return add_run(tmp_path / "out", [*rows, error_row(7)])


def test_json_lines_in_one_file(output, tmp_path):
    done = run(output, tmp_path / "a.jsonl", "jsonl", rows_per_file=3)
    assert (done.exported, done.left_out) == (10, {"error rows": 1})
    rows = json_lines((tmp_path / "a.jsonl").read_text())
    assert sorted(one["id"] for one in rows) == [f"row-{n:04}" for n in range(10)]
    first = next(one for one in rows if one["id"] == "row-0002")
    assert first["tags"] == ["x", "x"]
    assert first["kind"] == "a"  # from the folder's name
    assert first["score"] == 1.0


def test_hostile_texts_come_back(tmp_path):
    rows = [row(number, text=text) for number, text in enumerate(HOSTILE)]
    output = add_run(tmp_path / "out", [*rows, row(99, text=None)])
    run(output, tmp_path / "a.jsonl", "jsonl", columns=("id", "text"))
    found = {one["id"]: one["text"] for one in json_lines((tmp_path / "a.jsonl").read_text())}
    assert list(found.values()) == [*HOSTILE, None]
    run(output, tmp_path / "a.csv", "csv", columns=("id", "text", "tags"), rows_per_file=3)
    text = (tmp_path / "a.csv").read_bytes().decode()
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [one["text"] for one in read] == [*HOSTILE, ""]
    assert json.loads(read[2]["tags"]) == ["x", "x"]
    table = pd.read_csv(
        tmp_path / "a.csv", keep_default_na=False, na_values={"text": []}, engine="python"
    )
    assert list(table["id"]) == [one["id"] for one in rows] + ["row-0099"]
    run(output, tmp_path / "one.csv", "csv", columns=("text",))
    assert len(pd.read_csv(tmp_path / "one.csv", skip_blank_lines=True)) == len(HOSTILE) + 1


def test_parquet_is_compacted(output, tmp_path):
    run(output, tmp_path / "p", "parquet", columns=("kind", "id", "text", "tags"))
    [file] = (tmp_path / "p").glob("*.parquet")
    table = pq.read_table(file)
    assert table.column_names == ["kind", "id", "text", "tags"]
    assert table.num_rows == 10
    assert pd.read_parquet(tmp_path / "p").shape == (10, 4)


def test_parquet_with_pictures(pictures, tmp_path):
    done = run(pictures, tmp_path / "p", "parquet", media=True, roots=(str(tmp_path),))
    assert done.exported == 5
    assert done.left_out == {"error rows": 1, "media changed since": 1, "fetch_not_found": 1}
    table = pq.read_table(tmp_path / "p" / "part-000000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}}
    for one in table.to_pylist():
        assert one["image"]["bytes"] == Path(one["uri"]).read_bytes()
        assert one["image"]["path"] == f"{one['id']}.jpg"


def test_webdataset(pictures, tmp_path):
    run(pictures, tmp_path / "w", "webdataset", roots=(str(tmp_path),), rows_per_file=2)
    names = sorted(path.name for path in (tmp_path / "w").glob("*.tar"))
    assert names == ["000000.tar", "000001.tar", "000002.tar"]
    members = {}
    for name in names:
        with tarfile.open(tmp_path / "w" / name) as tar:
            members |= {one.name: tar.extractfile(one).read() for one in tar}
    keys = {name.partition(".")[0] for name in members}
    assert keys == {f"row-{n:04}" for n in (0, 1, 2, 4, 6)}
    assert members["row-0001.txt"] == b"text 1"
    assert json.loads(members["row-0001.json"])["id"] == "row-0001"
    assert members["row-0001.jpg"] == (tmp_path / "photos" / "picture-0001.jpg").read_bytes()


def test_webdataset_of_captions_only(output, tmp_path):
    assert run(output, tmp_path / "w", "webdataset", media=False).exported == 10
    with tarfile.open(tmp_path / "w" / "000000.tar") as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"txt", "json"}


HOSTILE_IDS = ["a/b.c", "../../up", "/abs", "A", "a", "Ä", "ä", "x" * 300, "con", "", ".", " "]


def test_hostile_ids_have_legal_names(tmp_path):
    pictures = picture_rows(tmp_path / "photos", len(HOSTILE_IDS))
    rows = [{**one, "id": name} for one, name in zip(pictures, HOSTILE_IDS, strict=True)]
    output = add_run(tmp_path / "out", rows)
    run(output, tmp_path / "f", "imagefolder", roots=(str(tmp_path),))
    files = [path for path in (tmp_path / "f" / "000000").iterdir() if path.suffix == ".jpg"]
    assert len({path.name.lower() for path in files}) == len(HOSTILE_IDS)
    lines = json_lines((tmp_path / "f" / "000000" / "metadata.jsonl").read_text())
    assert [one["id"] for one in lines] == HOSTILE_IDS
    for one, picture in zip(lines, pictures, strict=True):
        stored = tmp_path / "f" / "000000" / one["file_name"]
        assert stored.read_bytes() == Path(picture["uri"]).read_bytes()
        assert one["file_name"].count(".") == 1
    assert not (tmp_path / "up.jpg").exists()
    run(output, tmp_path / "w", "webdataset", roots=(str(tmp_path),))
    with tarfile.open(tmp_path / "w" / "000000.tar") as tar:
        assert len(set(tar.getnames())) == 3 * len(HOSTILE_IDS)


def test_fiftyone(pictures, tmp_path):
    run(pictures, tmp_path / "f", "fiftyone", roots=(str(tmp_path),), rows_per_file=2)
    labels = json.loads((tmp_path / "f" / "labels.json").read_text())
    assert labels["classes"] is None
    assert labels["labels"]["row-0001"] == {"label": "text 1", "attributes": {"id": "row-0001"}}
    names = {path.stem for path in (tmp_path / "f" / "data").iterdir()}
    assert names == set(labels["labels"])


def test_media_outside_of_the_allowed_folders_are_left_out(pictures, tmp_path):
    done = run(pictures, tmp_path / "f", "imagefolder")
    assert done.exported == 0
    assert done.left_out == {"error rows": 1, "fetch_denied": 7}


def test_where_and_errors(output, tmp_path):
    done = run(output, tmp_path / "a", "jsonl", where="score > 2 and kind == 'a'")
    assert done.exported == 2
    assert done.left_out == {"error rows": 1, "not chosen by --where": 8}
    assert run(output, tmp_path / "b", "jsonl", errors=True).exported == 11
    chosen = run(output, tmp_path / "c", "jsonl", errors=True, where="error_code != None")
    assert chosen.exported == 1


def test_an_export_goes_on_with_new_rows_and_after_a_compaction(tmp_path):
    output = tmp_path / "out"
    for night in range(4):
        add_run(output, [row(3 * night + n) for n in range(3)], 3 * night)
    options = {"columns": ("id",), "rows_per_file": 5}
    assert run(output, tmp_path / "a.jsonl", "jsonl", **options).new == 12
    assert run(output, tmp_path / "a.jsonl", "jsonl", **options).new == 0
    assert compact(str(output), 9).files_after == 2
    assert run(output, tmp_path / "a.jsonl", "jsonl", **options).new == 0
    add_run(output, [row(12)], 12)
    compact(str(output), 100)
    done = run(output, tmp_path / "a.jsonl", "jsonl", **options)
    assert (done.new, done.exported) == (1, 13)
    ids = [one["id"] for one in json_lines((tmp_path / "a.jsonl").read_text())]
    assert sorted(ids) == [f"row-{n:04}" for n in range(13)]


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize(
    ("to", "target"),
    [
        ("jsonl", "a.jsonl"),
        ("imagefolder", "d"),
        *(pytest.param(to, "d", marks=pytest.mark.slow) for to in ("csv", "parquet", "fiftyone")),
    ],
)
def test_killed_at_every_write_and_resumed(to, target, tmp_path, monkeypatch):
    rows = picture_rows(tmp_path / "photos", 9)
    output = add_run(tmp_path / "out", [*rows, error_row(9)])
    options = {"rows_per_file": 2, "roots": (str(tmp_path),)}
    run(output, tmp_path / "whole" / target, to, **options)
    wanted = contents(tmp_path / "whole")
    step = 0
    while True:
        place = tmp_path / f"killed-{step}" / target
        left = step

        def dying(change):
            def call(*arguments):
                nonlocal left
                if "export" in str(arguments[0].path) or "killed" in str(arguments[0].path):
                    left -= 1
                    if left < 0 and "lease" not in arguments[0].path:
                        raise Killed
                return change(*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in ("put", "put_file"):
                patch.setattr(storage, name, dying(getattr(storage, name)))
            try:
                run(output, place, to, **options)
                break
            except Killed:
                pass
        done = run(output, place, to, **options)
        assert (done.exported, done.left_out) == (9, {"error rows": 1})
        assert contents(tmp_path / f"killed-{step}") == wanted, f"killed at write {step}"
        step += 1
    assert step >= 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "to", ["sidecar", "webdataset", "jsonl", "csv", "parquet", "imagefolder", "fiftyone"]
)
def test_killed_at_every_change_of_the_file_system(to, tmp_path):
    command = [sys.executable, "-m", "tests.pipeline.export.export_kills", str(tmp_path), to]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["kills"] > 10


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "shard" not in path.name and path.name != "state.json"
    }


def test_an_export_of_files_that_are_replaced_meanwhile(tmp_path, monkeypatch):
    output = tmp_path / "out"
    for night in range(4):
        add_run(output, [row(3 * night + n) for n in range(3)], 3 * night)
    read = source_module.Source._read
    compacted = []

    def late(self, unit, skip):
        if not compacted and unit.name > "part-000000000010":
            compacted.append(compact(str(output), 100))
        return read(self, unit, skip)

    monkeypatch.setattr(source_module.Source, "_read", late)
    assert run(output, tmp_path / "a.jsonl", "jsonl", columns=("id",)).exported == 12
    assert compacted
    ids = [one["id"] for one in json_lines((tmp_path / "a.jsonl").read_text())]
    assert sorted(ids) == [f"row-{n:04}" for n in range(12)]


def test_an_output_without_rows(tmp_path):
    output = add_run(tmp_path / "out", [])
    with pytest.raises(JobError, match="found no finished rows yet"):
        run(output, tmp_path / "a", "jsonl")
    output = add_run(tmp_path / "errors", [error_row(0)])
    assert run(output, tmp_path / "a.csv", "csv", columns=("id",)).exported == 0
    assert (tmp_path / "a.csv").read_text() == "id\n"
    assert run(output, tmp_path / "p", "parquet").exported == 0
    assert pd.read_parquet(tmp_path / "p").empty
    assert run(output, tmp_path / "w", "webdataset").exported == 0


def test_wrong_options_are_sentences(output, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    run(output, tmp_path / "begun", "jsonl")
    for message, target, to, options in (
        ("did you mean 'text'?", "a", "jsonl", {"columns": ("txet",)}),
        ("a column twice", "a", "jsonl", {"columns": ("id", "id")}),
        ("condition ", "a", "jsonl", {"where": "nothing_like_it == 1"}),
        ("found files ('mine.txt')", "full", "jsonl", {}),
        ("leaves no choice", "a", "csv", {"media": True}),
        ("found no column 'caption'", "a", "sidecar", {"text": "caption"}),
        ("was begun with where = None", "begun", "jsonl", {"where": "score > 1"}),
        ("is not installed", "a.lance", "lance", {}),
    ):
        with pytest.raises(JobError) as error:
            run(output, tmp_path / target, to, **options)
        assert message in str(error.value)
    with pytest.raises(JobError, match="found no result"):
        run(tmp_path / "nowhere", tmp_path / "a", "jsonl")


def test_overwrite_begins_anew(output, tmp_path):
    run(output, tmp_path / "a", "jsonl", rows_per_file=2)
    run(output, tmp_path / "a", "jsonl", where="score > 4", overwrite=True)
    assert [path.name for path in (tmp_path / "a").glob("*.jsonl")] == ["part-000000.jsonl"]
    assert len(json_lines((tmp_path / "a" / "part-000000.jsonl").read_text())) == 1


def test_two_exports_to_one_target(output, tmp_path, monkeypatch):
    def again(self):
        monkeypatch.undo()
        with pytest.raises(RunError, match="expected one run at a time"):
            run(output, tmp_path / "a", "jsonl")
        return found

    found = source_module.Source(output).units()
    from mediamill.pipeline.export import run as run_module

    monkeypatch.setattr(run_module.Run, "_pending", lambda self, units: again(self) and [])
    run(output, tmp_path / "a", "jsonl")


def test_to_and_from_s3(s3, tmp_path):
    place = f"{s3}/export/{tmp_path.name}"
    output = f"{place}/out"
    rows = picture_rows(tmp_path / "photos", 5)
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for one in rows:
        name = Path(one["uri"]).name
        fs.put_file(one["uri"], f"{place.removeprefix('s3://')}/photos/{name}")
        one["uri"] = f"{place}/photos/{name}"
    add_run(output, rows)
    add_run(output, [row(5)], 5)
    options = {"columns": ("id", "text"), "rows_per_file": 2}
    assert run(output, f"{place}/a.jsonl", "jsonl", **options).exported == 6
    assert len(json_lines(fs.cat_file(f"{place}/a.jsonl").decode())) == 6
    compact(output, 100)
    assert run(output, f"{place}/a.jsonl", "jsonl", **options).new == 0
    done = run(output, f"{place}/f", "imagefolder", where="id < 'row-0005'")
    assert done.exported == 5
    assert len(fs.find(f"{place}/f/000000")) == 6
    assert run(output, f"{place}/photos", "sidecar", where="id < 'row-0005'").exported == 5
    assert fs.cat_file(f"{place}/photos/picture-0003.txt") == b"text 3"


def test_annotations_have_two_tables(tmp_path):
    add_run(tmp_path / "out" / "windows", [row(0), row(1)])
    (tmp_path / "out" / "videos").mkdir()
    segments = [{"window": 0, "text": "a"}, {"window": 1, "text": None}]
    videos = pd.DataFrame({"id": ["v"], "segments": [segments], "status": ["ok"]})
    videos.to_parquet(tmp_path / "out" / "videos" / "part-1-00000.parquet")
    assert run(tmp_path / "out", tmp_path / "w.jsonl", "jsonl").exported == 2
    run(tmp_path / "out", tmp_path / "v.jsonl", "jsonl", table="videos")
    assert json_lines((tmp_path / "v.jsonl").read_text())[0]["segments"] == segments
    run(tmp_path / "out", tmp_path / "v.csv", "csv", table="videos")
    [found] = pd.read_csv(tmp_path / "v.csv").to_dict("records")
    assert json.loads(found["segments"]) == segments
    with pytest.raises(JobError, match="--table"):
        run(tmp_path / "out", tmp_path / "x", "jsonl", table="../out")


def test_vectors_and_scores(tmp_path):
    (tmp_path / "out").mkdir()
    vectors = [[0.5, -1.0], [float("nan"), 2.0]]
    scores = [{"text": "yes", "probability": 0.9}]
    columns = {"id": [7, 8], "embedding": vectors, "scores": [scores, None], "status": ["ok"] * 2}
    pd.DataFrame(columns).to_parquet(tmp_path / "out" / "part.parquet")
    run(tmp_path / "out", tmp_path / "a.jsonl", "jsonl")
    found = json_lines((tmp_path / "a.jsonl").read_text())
    assert [one["embedding"] for one in found] == [[0.5, -1.0], [None, 2.0]]
    assert [one["scores"] for one in found] == [scores, None]
    assert [one["id"] for one in found] == [7, 8]
    run(tmp_path / "out", tmp_path / "p", "parquet", where="length(embedding) == 2 and id > 7")
    assert pd.read_parquet(tmp_path / "p")["id"].to_list() == [8]
    with pytest.raises(JobError, match="--text: found no column 'text'"):
        run(tmp_path / "out", tmp_path / "t", "sidecar")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "out").mkdir()
    wrong = pa.array([b"good", b"bad \xff\xed\xa0\x80"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": [1, 2], "text": wrong}), tmp_path / "out" / "part.parquet")
    for to, target in (("jsonl", "a.jsonl"), ("csv", "a.csv")):
        assert run(tmp_path / "out", tmp_path / target, to).exported == 2
        assert "bad \ufffd" in (tmp_path / target).read_text(encoding="utf-8")
