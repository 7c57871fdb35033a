"""Jobs whose tables hold the media, as bytes or data URIs; rows that contradict themselves."""

import base64
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.annotate.annotate import check_annotation
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.run import run
from mediamill.pipeline.stages import read
from mediamill.pipeline.stages.fetch import Fetch
from mediamill.schemas.errors import JobError
from tests.media import jpeg, numbered_frames, video
from tests.pipeline.fetching.rules import fetch_rules
from tests.pipeline.world import make_job, read_output, write_manifest

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PICTURES = [jpeg(56, 84, seed=seed) for seed in range(3)]


def hub_rows(folder):
    (folder / "in.jpg").write_bytes(PICTURES[2])
    values = [
        {"bytes": PICTURES[0], "path": "same.jpg"},
        {"bytes": PICTURES[1], "path": "same.jpg"},
        {"bytes": None, "path": str(folder / "in.jpg")},
        {"bytes": PICTURES[0], "path": None},
        None,
        {"bytes": b"", "path": "same.jpg"},
        {"bytes": b"no picture", "path": "same.jpg"},
    ]
    return pa.table(
        {"id": [f"r{number}" for number in range(len(values))], "image": pa.array(values, HUB)}
    )


def read_rows(path):
    """The schema of a manifest of one file, and its rows as a read task yields them."""
    manifest = open_manifest(str(path))
    [file] = manifest.files
    starts = np.cumsum([0, *file.row_groups]).tolist()
    groups = [read.RowGroup(at, starts[at], rows) for at, rows in enumerate(file.row_groups)]
    part = read.RowGroupSlice(
        file.place.url, 0, file.version, file.rows, tuple(groups), b"", dict(file.partitions)
    )
    split = read.ReadSplit((part,), file.rows)
    return manifest.schema, list(read.read_split(split, manifest.schema, manifest.partitions))


def test_pictures_go_from_the_table_to_the_decoder_without_a_copy(tmp_path):
    write_manifest(tmp_path / "m.parquet", hub_rows(tmp_path))
    manifest, [table] = read_rows(tmp_path / "m.parquet")
    fetch = Fetch(manifest, fetch_rules(10**6, 5.0, str(tmp_path)))
    parts = fetch.parts(table)
    fetched = next(parts)
    assert [row and row[0] for row in fetched["media_bytes"].to_pylist()] == [
        *(PICTURES[0], PICTURES[1], PICTURES[2], PICTURES[0]),
        *(None, None, b"no picture"),
    ]
    codes = fetched["error_code"].to_pylist()
    assert codes == [None, None, None, None, "media_empty", "media_empty", None]
    assert fetch._fetcher.budget.held == sum(map(len, [*PICTURES, PICTURES[0], b"no picture"]))
    [read_chunk] = table["media_bytes"].chunks
    first_chunk, second_chunk = fetched["media_bytes"].chunks[:2]
    address = read_chunk.values.buffers()[2].address
    assert first_chunk.values.buffers()[2].address == address
    assert second_chunk.values.buffers()[2].address == address + len(PICTURES[0])
    del fetched, first_chunk, second_chunk
    assert next(parts, None) is None
    assert fetch._fetcher.budget.held == 0


def test_a_picture_in_a_table_has_the_limit_of_all_media(tmp_path):
    write_manifest(tmp_path / "m.parquet", hub_rows(tmp_path).slice(0, 1))
    manifest, [table] = read_rows(tmp_path / "m.parquet")
    fetched = Fetch(manifest, fetch_rules(100, 5.0, str(tmp_path)))(table)
    assert fetched["error_code"].to_pylist() == ["fetch_too_large"]
    assert "same.jpg: found" in fetched["error_message"][0].as_py()


def test_large_rows_are_read_in_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_BATCH_BYTES", 2 << 20)
    data = [np.random.default_rng(seed).bytes(1 << 16) for seed in range(80)]
    table = pa.table({"id": range(80), "image": pa.array(data, pa.binary())})
    pq.write_table(table, tmp_path / "m.parquet", compression="none")
    _, tables = read_rows(tmp_path / "m.parquet")
    assert max(table.num_rows for table in tables) <= 32
    assert sum(table.num_rows for table in tables) == 80


def test_annotate_reads_no_videos_of_a_table(tmp_path):
    write_manifest(tmp_path / "m.parquet", hub_rows(tmp_path))
    job = make_job(tmp_path / "m.parquet", tmp_path / "out", job="annotate")
    with pytest.raises(JobError, match="found videos in the column 'image', expected files or"):
        check_annotation(job)


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_over_a_table_of_the_hub(tmp_path):
    rows = hub_rows(tmp_path)
    write_manifest(tmp_path / "m.parquet", rows)
    write_manifest(
        tmp_path / "media" / "m.parquet", [{"id": "same", "uri": str(tmp_path / "in.jpg")}]
    )
    summary = run(make_job(tmp_path / "m.parquet", tmp_path / "out"))
    assert summary.exit_code == 3
    result = read_output(tmp_path / "out")
    assert [row["error_code"] for row in result] == [
        *(None, None, None, None, "media_empty", "media_empty", "decode_unsupported")
    ]
    assert "image" not in result[0]  # it would be a second copy of the pictures
    assert [row["uri"] for row in result[:4]] == [
        "same.jpg",
        "same.jpg",
        str(tmp_path / "in.jpg"),
        None,
    ]
    assert result[0]["sha256"] == result[3]["sha256"] != result[1]["sha256"]
    assert result[0]["receipt"][0]["uri"] == "same.jpg"
    again = run(make_job(tmp_path / "m.parquet", tmp_path / "out"))
    assert (again.rows, again.skipped, again.exit_code) == (7, 7, 0)  # nothing is left


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_over_rows_that_contradict_themselves(tmp_path):
    for number, picture in enumerate(PICTURES):
        (tmp_path / f"{number}.jpg").write_bytes(picture)
    (tmp_path / "clip.mp4").write_bytes(video(numbered_frames(8, 56, 56)))

    def uri(content):
        return "data:;base64," + base64.b64encode(content).decode()

    def chat(*parts):
        content = [*parts, {"type": "text", "text": "What is this?"}]
        return json.dumps([{"role": "user", "content": content}])

    def one(name, start_s=None, end_s=None):
        name = str(tmp_path / name) if name and ":" not in name else name
        return {"type": None, "uri": name, "start_s": start_s, "end_s": end_s}

    first, second = str(tmp_path / "0.jpg"), str(tmp_path / "1.jpg")
    nan, inf = float("nan"), float("inf")
    rows = [
        (None, [one("0.jpg")], None),
        (None, [one(uri(PICTURES[0]))], None),
        (None, [one(uri(PICTURES[0]))], chat({"type": "image", "image": uri(PICTURES[0])})),
        (None, [one("0.jpg")], chat({"type": "image", "image": first})),
        (None, [one("0.jpg")], chat({"type": "image", "image": f"file://{first}"})),
        (None, [], chat()),
        (None, [one("clip.mp4", 0.2, inf)], None),
        ("media_empty", None, None),
        ("media_empty", [], None),
        ("media_empty", None, chat({"type": "image"})),
        ("media_empty", [one("clip.mp4", 0.5, 0.2)], None),
        ("media_empty", [one("clip.mp4", nan, nan)], None),
        ("media_empty", [one("clip.mp4", 99.0)], None),
        ("media_empty", [one("data:;base64,")], None),
        ("decode_unsupported", [one("data:image/png;base64," + "A" * 1_000_000)], None),
        ("decode_unsupported", [one("0.jpg", 0.0, 1.0)], None),
        ("fetch_failed", [one("data:image/png;base64")], None),
        ("fetch_not_found", [None], None),
        ("fetch_not_found", [one("")], None),
        ("fetch_not_found", [one("no\nsuch " * 20_000)], None),
        ("prompt_invalid", [one("0.jpg")], chat({"type": "image", "image": second})),
        ("prompt_invalid", [one("0.jpg")], chat({"type": "image", "image": uri(PICTURES[0])})),
        ("prompt_invalid", [one("0.jpg"), one("1.jpg")], chat({"type": "image"})),
        ("prompt_invalid", [one("0.jpg")], chat({"type": "video"})),
        ("prompt_invalid", [one("0.jpg")], chat({"type": "image"}).replace("What", "\\ud800")),
        ("prompt_invalid", [one("0.jpg")], "[" * 300 + "]" * 300),
        (
            "prompt_invalid",
            [one("0.jpg")],
            chat({"type": "image"}).replace("What", "<|image_pad|>"),
        ),
        ("context_too_long", [one("0.jpg")], chat({"type": "image"}).replace("What", "x" * 10**6)),
    ]
    media = pa.list_(
        pa.struct(
            [
                ("type", pa.string()),
                ("uri", pa.string()),
                ("start_s", pa.float64()),
                ("end_s", pa.float64()),
            ]
        )
    )
    table = pa.table(
        {
            "id": [f"{number:02}" for number in range(len(rows))],
            "media": pa.array([row[1] for row in rows], media),
            "messages": pa.array([row[2] for row in rows], pa.string()),
        }
    )
    write_manifest(tmp_path / "m.parquet", table)
    assert run(make_job(tmp_path / "m.parquet", tmp_path / "out")).exit_code == 3
    result = read_output(tmp_path / "out")
    codes = {row["id"]: row["error_code"] for row in result}
    assert codes == {f"{number:02}": row[0] for number, row in enumerate(rows)}
    texts = [row["text"] for row in result[:5]]
    assert len({texts[0], texts[1]}) == len({texts[2], texts[3], texts[4]}) == 1
    for row in result:
        assert len(row["error_message"] or "") < 2000
        for each in [*(row["media"] or []), *(row["receipt"] or [])]:
            assert (
                each is None or not str(each["uri"]).startswith("data:") or len(each["uri"]) < 1001
            )
    assert result[1]["media"][0]["uri"] == result[1]["receipt"][0]["uri"]
    assert result[14]["media"][0]["uri"] == "data:image/png;base64,...(1,000,022 characters)"
