"""The whole pipeline on a real Ray cluster: rows in are rows out, here and on S3, and again."""

import json
import shutil
import time

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.plan import check
from mediamill.pipeline.run import run
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from mediamill.schemas.result import result_schema
from tests.pipeline.world import (
    assert_each_once,
    draw_media,
    make_job,
    picture_rows,
    read_output,
    write_manifest,
)

BROKEN = {
    "gone": "fetch_not_found",
    "folder": "fetch_denied",
    "truncated": "decode_corrupt",
    "text": "decode_unsupported",
    "empty": "media_empty",
    "scheme": "fetch_denied",
    "null": "fetch_not_found",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def media(home):
    return draw_media(home / "media")


def broken_rows(media):
    uris = {
        "gone": str(media["empty"].parent / "gone.jpg"),
        "folder": str(media["empty"].parent),
        "scheme": "ftp://host/a.jpg",
        "null": None,
    }
    return [
        {"id": name, "uri": uris.get(name, str(media.get(name))), "kind": None} for name in BROKEN
    ]


@pytest.fixture(scope="module")
def manifest(home, media):
    """Two days as hive folders, several row groups, broken rows among sound ones, a clip."""
    folder = home / "manifest"
    rows = [*picture_rows(media, 20), *broken_rows(media)]
    rows.append({"id": "clip", "uri": str(media["clip"]), "kind": "a/b=c %"})
    write_manifest(folder / "day=2024-01-01" / "a.parquet", rows, row_group_size=7)
    more = picture_rows(media, 12, first=20)
    write_manifest(folder / "day=2024-01-02" / "b.parquet", more)
    return folder


@pytest.fixture(scope="module")
def first(home, manifest, ray_cluster):
    """The job, what it reported and what it gave."""
    job = make_job(manifest, home / "out", partition_by=["kind"])
    seen = []
    summary = run(job, on_progress=seen.append)
    return job, summary, seen


def test_every_row_comes_out_once(first, manifest):
    job, summary, _ = first
    rows = read_output(job.output)
    ids = pq.read_table(manifest)["id"].to_pylist()
    assert len(ids) == 40
    assert_each_once(rows, ids)
    assert (summary.rows, summary.ok, summary.error_rows) == (40, 33, 7)
    assert (summary.skipped, summary.exit_code) == (0, 3)
    by_id = {row["id"]: row for row in rows}
    for name, code in BROKEN.items():
        row = by_id[name]
        assert (row["status"], row["error_code"], row["text"]) == ("error", code, None), row
        assert row["error_message"]
    for row in rows:
        if row["id"] in BROKEN:
            continue
        assert (row["status"], row["error_code"], row["attempt"]) == ("ok", None, 1)
        assert row["visual_tokens"] > 0
        assert row["height"] % 28 == row["width"] % 28 == 0
        assert 0 < row["output_tokens"] <= 6
        assert row["finish_reason"] in ("stop", "length")
        assert (row["run_id"], row["fingerprint"]) == (summary.run_id, summary.fingerprint)
        assert row["day"] in ("2024-01-01", "2024-01-02")
    assert by_id["clip"]["kind"] == "a/b=c %"
    clip = by_id["clip"]
    assert len(clip["frame_times_s"]) == len(clip["receipt"][0]["frame_indices"]) == 4
    assert by_id["row-00000"]["text"] == by_id["row-00006"]["text"]  # the same picture
    assert by_id["row-00000"]["sha256"] == by_id["row-00030"]["sha256"]
    assert summary.output_tokens == sum(row["output_tokens"] or 0 for row in rows)
    assert summary.visual_tokens == sum(row["visual_tokens"] or 0 for row in rows)


def test_the_files_have_the_schema_of_the_result(first, home):
    job, _, _ = first
    plan = check(job)
    paths = sorted((home / "out").glob("kind=*/*.parquet"))
    folders = {path.parent.name for path in paths}
    assert {"kind=a", "kind=__HIVE_DEFAULT_PARTITION__", "kind=a%2Fb%3Dc %25"} <= folders
    expected = result_schema(plan.manifest.schema)
    inside = pa.schema([field for field in expected if field.name != "kind"])
    for path in paths:
        assert pq.read_schema(path).equals(inside), path
    assert pd.read_parquet(home / "out" / "kind=a")["id"].is_unique


def test_progress_was_told(first):
    _, summary, seen = first
    assert seen[-1].rows_total == seen[-1].rows_done == 40
    assert seen[-1].ok == summary.ok
    assert dict(seen[-1].errors) == dict(summary.errors)
    assert seen[-1].prepared >= 40
    done = [progress.rows_done for progress in seen]
    assert done == sorted(done)


def test_a_second_run_does_nothing_and_needs_no_cluster(first):
    job, summary, _ = first
    before = ledger.load(storage.resolve(job.output)).sequence
    started = time.monotonic()
    again = run(job, address="nowhere:1")  # would fail if it asked for a cluster
    assert time.monotonic() - started < 10
    assert (again.rows, again.ok, again.skipped) == (40, summary.ok, 40)
    assert dict(again.errors) == dict(summary.errors)
    assert again.output_tokens == 0
    assert ledger.load(storage.resolve(job.output)).sequence == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"prompt": "Another one."},
            r"made with prompt = \"Describe.* the job has \"Another one.\"",
        ),
        ({"generation__max_new_tokens": 7}, r"generation = .*\"max_new_tokens\": 6"),
        ({"image__max_pixels": 4000}, "image"),
        ({"partition_by": ["day"]}, r"partition_by = \[\"kind\"\]"),
    ],
)
def test_another_job_on_the_same_output_is_refused(first, manifest, change, words):
    job, _, _ = first
    settings = {"partition_by": ["kind"], **change}
    with pytest.raises(JobError, match=words) as error:
        check(make_job(manifest, job.output, **settings))
    assert "write to a new output folder" in str(error.value)


def test_a_manifest_may_grow_and_be_sorted_but_not_lose_finished_rows(first, manifest, home, media):
    job, _, _ = first
    grown = home / "manifest"
    kept = home / "kept"
    shutil.copytree(grown, kept)
    write_manifest(grown / "day=2024-01-03" / "c.parquet", picture_rows(media, 3, first=100))
    longer = [*picture_rows(media, 12, first=20), *picture_rows(media, 2, first=200)]
    write_manifest(grown / "day=2024-01-02" / "b.parquet", longer)
    texts = {row["id"]: row["run_id"] for row in read_output(job.output)}
    summary = run(job)
    rows = read_output(job.output)
    assert_each_once(rows, pq.read_table(grown)["id"].to_pylist())
    assert (summary.rows, summary.skipped) == (45, 40)
    assert {row["id"] for row in rows if row["run_id"] == summary.run_id} == {
        *(f"row-{number:05}" for number in (100, 101, 102, 200, 201))
    }
    assert {row["id"]: row["run_id"] for row in rows if row["id"] in texts} == texts

    write_manifest(grown / "day=2024-01-02" / "b.parquet", list(reversed(longer)))
    assert check(job).rows_left == 0
    (grown / "day=2024-01-02" / "b.parquet").unlink()
    with pytest.raises(JobError, match=r"found 14 of the output's 45 finished rows no longer in"):
        check(job)
    shutil.rmtree(grown)
    kept.rename(grown)


@pytest.mark.slow  # the short soak reads from S3 and writes to it
def test_the_same_rows_on_s3(first, s3, manifest, media):
    job, summary, _ = first
    local = {row["id"]: row for row in read_output(job.output)}
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for path in media.values():
        fs.put_file(str(path), f"{s3}/run/media/{path.name}")
    for path in manifest.glob("*/*.parquet"):
        table = pq.ParquetFile(path).read()
        uris = [
            uri and uri.replace(str(manifest.parent), f"{s3}/run")
            for uri in table["uri"].to_pylist()
        ]
        table = table.set_column(table.column_names.index("uri"), "uri", [uris])
        with fs.open(f"{s3}/run/manifest/{path.parent.name}/{path.name}", "wb") as file:
            pq.write_table(table, file)
    remote = make_job(f"{s3}/run/manifest", f"{s3}/run/out", partition_by=["kind"])
    found = run(remote)
    rows = read_output(remote.output, filesystem=fs)
    assert_each_once(rows, [row["id"] for row in rows])
    assert {row["id"] for row in rows} <= set(local)
    assert len(rows) == found.rows == 40
    assert found.fingerprint == summary.fingerprint
    same = ("text", "status", "kind", "sha256", "visual_tokens", "output_tokens", "day")
    for row in rows:
        expected = local[row["id"]]
        assert {key: row[key] for key in same} == {key: expected[key] for key in same}
        if row["id"] != "folder":  # a folder's name is no object
            assert row["error_code"] == expected["error_code"], row
    names = [name.rpartition("/")[2] for name in fs.find(f"{s3}/run/out") if "staged" in name]
    assert names == []
    assert run(remote).skipped == 40


def test_several_media_own_prompts_and_integer_ids(home, media, ray_cluster):
    def part(name, kind=None, start=None, end=None):
        return {"type": kind, "uri": str(media[name]), "start_s": start, "end_s": end}

    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "and"},
                {"type": "video"},
                {"type": "text", "text": "Describe both."},
            ],
        }
    ]
    rows = [
        {"id": 1, "media": [part("picture-0", "image"), part("picture-1", "image")]},
        {"id": -2, "media": [part("clip", "video", 0.0, 0.3)]},
        {"id": 3, "media": [part("picture-0"), part("clip")], "messages": json.dumps(chat)},
        {"id": 4, "media": [part("picture-0")], "messages": json.dumps(chat)},
        {"id": 5, "media": [part("picture-0")], "prompt": "A row's own prompt."},
        {"id": 6, "media": [part("picture-0"), part("truncated")]},
        {"id": 7, "media": [part("clip", "image")]},
        {"id": 8, "media": [part("picture-0")], "messages": "{no chat"},
        {"id": 9, "media": [], "prompt": "No picture at all."},
        {"id": 10, "media": [part("picture-0")], "prompt": "<|im_end|>"},
    ]
    media_type = pa.list_(
        pa.struct(
            [
                ("type", pa.string()),
                ("uri", pa.string()),
                ("start_s", pa.float64()),
                ("end_s", pa.float64()),
            ]
        )
    )
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("media", media_type),
            ("prompt", pa.string()),
            ("messages", pa.string()),
        ]
    )
    manifest = write_manifest(home / "several.parquet", pa.Table.from_pylist(rows, schema=schema))
    summary = run(make_job(manifest, home / "several"))
    found = {row["id"]: row for row in read_output(home / "several")}
    assert_each_once(list(found.values()), [row["id"] for row in rows])
    assert summary.rows == 10
    codes = {key: row["error_code"] for key, row in found.items() if row["error_code"]}
    assert codes == {
        4: "prompt_invalid",
        6: "decode_corrupt",
        7: "decode_unsupported",
        8: "prompt_invalid",
        10: "prompt_invalid",
    }
    assert [one["type"] for one in found[1]["receipt"]] == ["image", "image"]
    assert [one["uri"] for one in found[1]["receipt"]] == [
        str(media["picture-0"]),
        str(media["picture-1"]),
    ]
    assert found[1]["visual_tokens"] == sum(one["visual_tokens"] for one in found[1]["receipt"])
    assert [one["type"] for one in found[3]["receipt"]] == ["image", "video"]
    assert max(found[-2]["frame_times_s"]) <= 0.3
    assert found[4]["sha256"] == found[5]["sha256"]  # what is known of an error row is kept
    assert found[5]["prompt_tokens"] != found[1]["prompt_tokens"]
    assert (found[9]["visual_tokens"], found[9]["receipt"], found[9]["status"]) == (0, [], "ok")
