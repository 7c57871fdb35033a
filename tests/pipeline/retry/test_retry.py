"""A retry replaces error rows once, and rows of files that are gone are done again."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline import compact
from mediamill.pipeline.export.export import ExportOptions, export
from mediamill.pipeline.ledger import ledger, snapshot
from mediamill.pipeline.ledger.inventory import take_inventory
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.manifest.resharding import check_files
from mediamill.pipeline.retry.check import check_output
from mediamill.pipeline.retry.job_note import job_of, read_job, save_job
from mediamill.pipeline.retry.lost_rows import CountRules, find_lost
from mediamill.pipeline.retry.options import Retry
from mediamill.pipeline.retry.reopen import reopen_rows
from mediamill.pipeline.stages.read import plan_splits, read_split
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError
from mediamill.schemas.result import result_schema
from mediamill.schemas.task import Question
from tests.pipeline.ledger.test_kill_points import dies
from tests.pipeline.retry import retry_kills
from tests.pipeline.retry.retry_kills import ERRORS, IDS, ROWS, assert_redone, check_moment, run
from tests.pipeline.world import make_job, read_output

ROOT = Path(__file__).parents[3]
MEMORY = Path("/dev/shm")  # hundreds of fsyncs are slow on a disk


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
    """Restores `snapshot.due`, which the runs change."""
    monkeypatch.setattr(snapshot, "due", snapshot.due)


@pytest.fixture
def begun(tmp_path):
    """An output with error rows: its place and its manifest."""
    manifest = retry_kills.write_manifest(tmp_path)
    output = storage.resolve(str(tmp_path / "out"))
    run(output, manifest, "first", "text", ERRORS)
    return output, manifest


def rows_of(output):
    return {int(row["id"].removeprefix("row-")): row for row in read_output(output.path)}


def test_error_rows_are_replaced_in_their_files(begun):
    output, manifest = begun
    before = {name: (output / name).path for name in visible_files(output)}
    files = {name: pq.read_table(path, partitioning=None) for name, path in before.items()}
    told = []
    state = run(output, manifest, "20260101T000000-again", "new", (), Retry(), told)
    assert told == ["6 error rows are done again (fetch_timeout 6)"]
    assert_redone(output)
    assert state.run_counts.rows == len(ERRORS)
    assert visible_files(output) == sorted(before)
    for name, path in before.items():  # no other row has moved or changed
        now = pq.read_table(path, partitioning=None)
        assert now["id"].to_pylist() == files[name]["id"].to_pylist()
        assert now.schema.equals(files[name].schema)
        noted = (pq.read_metadata(path).metadata or {}).get(b"mediamill.replaced")
        count = sum(int(row.removeprefix("row-")) in ERRORS for row in now["id"].to_pylist())
        assert (noted is not None) == (count > 0)


def test_rows_that_fail_again_count_on(begun):
    output, manifest = begun
    where = 'error_code == "fetch_timeout" and kind == "b" and id != "row-21"'
    chosen = [1, 3, 9]
    changed = Retry(where, changed={"image.max_pixels": 50176})
    state = run(output, manifest, "second", "new", [9], changed)
    assert state.run_counts.errors == {"fetch_timeout": 1}
    assert (state.counts.ok, state.counts.errors) == (ROWS - 4, {"fetch_timeout": 4})
    run(output, manifest, "third", "new", [9], Retry('id == "row-9"'))
    rows = rows_of(output)
    for number, row in rows.items():
        attempt = {9: 3}.get(number, 2 if number in chosen else 1)
        assert row["attempt"] == attempt, number
    history = rows[9]["attempt_history"]
    assert [entry["attempt"] for entry in history] == [1, 2, 3]
    assert [entry["run_id"] for entry in history] == ["first", "second", "third"]
    assert [entry["changed"] for entry in history] == [None, "image.max_pixels=50176", None]
    assert rows[9]["run_id"] == "third"


def test_new_rows_and_error_rows_in_one_run(begun):
    output, manifest = begun
    shutil.rmtree(Path(output.path) / "kind=a")  # its rows are to be done too
    told = []
    run(output, manifest, "both", "new", (), Retry(only=False), told)
    assert told[0].startswith("3 files (kind=a/part-")
    assert "11 rows of 3 files that are gone are done again" in told
    check_moment(output, True)
    assert [row["text"] for row in rows_of(output).values()].count(None) == 0


def test_an_output_of_an_older_version(begun):
    """Without a record of the visible files, footers tell how many rows there are."""
    output, _ = begun
    state = ledger.load(output)
    assert state.visible is not None
    state.visible = None
    assert take_inventory(output, state).missing_rows == 0
    next(Path(output.path).glob("kind=a/*.parquet")).unlink()
    assert take_inventory(output, state).missing_rows > 0


def test_an_output_without_the_column_of_attempts(tmp_path, monkeypatch):
    def older_schema(manifest):
        schema = result_schema(manifest)
        return pa.schema([field for field in schema if field.name != c.ATTEMPT_HISTORY])

    monkeypatch.setattr(retry_kills, "result_schema", older_schema)
    manifest = retry_kills.write_manifest(tmp_path)
    output = storage.resolve(str(tmp_path / "out"))
    run(output, manifest, "first", "text", ERRORS)
    run(output, manifest, "again", "new", (), Retry())
    check_moment(output, True)
    for number, row in rows_of(output).items():
        assert (row["attempt"], row["status"]) == (2 if number in ERRORS else 1, "ok")
        assert c.ATTEMPT_HISTORY not in row


def test_a_broken_file_is_made_again(begun):
    output, manifest = begun
    path = Path((output / visible_files(output)[0]).path)
    path.write_bytes(b"PAR1 and no more")
    told = []
    run(output, manifest, "next", "new", (), None, told)
    assert told[0].endswith("was changed, and cannot be read")
    assert told[1] == "4 rows of files that have changed are done again"
    (check,) = check_output(output.url)
    assert "cannot be read" in check.problems[0]
    path.unlink()
    check_moment(output, True)
    (check,) = check_output(output.url)
    assert check.problems == ()


def test_files_of_others_are_told_and_kept(begun):
    output, manifest = begun
    (name, *_) = visible_files(output)
    copy = Path((output / name).path).with_name("copy.parquet")
    shutil.copy((output / name).path, copy)
    told = []
    run(output, manifest, "next", told=told)
    assert told == [
        f"1 file ({copy.parent.name}/copy.parquet) is not of Mediamill; readers see 4 rows more"
    ]
    (check,) = check_output(output.url, deep=False)
    assert check.exit_code == 3
    copy.unlink()
    (check,) = check_output(output.url, deep=False)
    assert (check.exit_code, check.rows, check.problems) == (0, ROWS, ())
    # A renamed file has the rows still: nothing is done again.
    Path((output / name).path).rename(copy)
    state = run(output, manifest, "renamed")
    assert state.run_counts.rows == 0
    assert sorted(row["id"] for row in read_output(output.path)) == IDS


def test_a_deep_check_finds_a_damaged_page(begun):
    output, manifest = begun
    save_job(output, make_job(manifest, output.url), "first")
    (check,) = check_output(output.url, deep=True)
    assert check.problems == ()
    path = Path((output / visible_files(output)[0]).path)
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    (check,) = check_output(output.url, deep=False)
    assert check.exit_code == 0  # names and sizes are as before
    (check,) = check_output(output.url, deep=True)
    assert any("cannot be read" in problem for problem in check.problems)


def test_after_a_compaction_and_before_one(begun):
    output, manifest = begun
    compact.compact(output.url, 9)
    assert not take_inventory(output, ledger.load(output)).differs
    run(output, manifest, "again", "new", (), Retry())
    assert_redone(output)
    run(output, manifest, "nothing", "new", (), Retry())
    compact.compact(output.url, 100)
    assert not take_inventory(output, ledger.load(output)).differs
    assert_redone(output)


def test_a_compaction_after_a_killed_retry_and_a_deleted_file(begun, monkeypatch):
    output, manifest = begun
    with monkeypatch.context() as patch:
        patch.setattr(retry_kills.recovery, "flush", lambda *_: None)  # killed after its commits
        patch.setattr(retry_kills.ledger, "end", lambda *_: False)
        run(output, manifest, "killed", "new", (), Retry())
    assert len(ledger.load(output).replacements) > 1
    (check,) = check_output(output.url)
    assert check.notes
    compact.compact(output.url, 9)
    check_moment(output, True)
    run(output, manifest, "next", "new", (), Retry())
    assert_redone(output)
    next(Path(output.path).glob("kind=a/*.parquet")).unlink()
    compact.compact(output.url, 100)
    state = run(output, manifest, "last", "new")
    assert 0 < state.run_counts.rows < ROWS // 2
    check_moment(output, True)
    (check,) = check_output(output.url)
    assert check.problems == ()


def test_rows_that_are_in_other_files_of_the_manifest(begun, tmp_path):
    output, manifest = begun
    table = pq.read_table(manifest)
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, start in enumerate((12, 0)):  # 10 rows, then 12: in another order too
        rows = table.slice(start, 10 if start else 12)
        pq.write_table(rows, folder / f"part-{number}.parquet")
    state = ledger.load(output)
    opened = open_manifest(str(folder), state.files, state.header)
    checked = check_files(opened, state, output)
    ledger.begin(output, state, "second", {}, checked.files, 4, checked.resharding)
    reopen_rows(output, state, opened, Retry(), "second", lambda _: None)
    splits = plan_splits(opened, state)
    assert sum(split.rows for split in splits) == len(ERRORS)
    tables = [t for split in splits for t in read_split(split, opened.schema, opened.partitions)]
    ids = {row_id for t in tables for row_id in t["id"].to_pylist()}
    assert ids == {f"row-{number}" for number in ERRORS}


def test_an_export_goes_on_with_replaced_rows(begun, tmp_path):
    output, manifest = begun

    def exported(name):
        target = tmp_path / name
        summary = export(ExportOptions(output.url, str(target), "jsonl", rows_per_file=5))
        texts = "".join(path.read_text() for path in target.glob("*.jsonl"))
        lines = [json.loads(line) for line in texts.splitlines()]
        assert len(lines) == summary.exported
        assert len({line["id"] for line in lines}) == len(lines)
        return summary.new, {line["id"]: line["text"] for line in lines}

    assert exported("one")[0] == ROWS - len(ERRORS)
    run(output, manifest, "again", "new", [9], Retry())
    new, texts = exported("one")
    assert new == len(ERRORS) - 1
    assert texts["row-21"] == "new 21"
    compact.compact(output.url, 9)
    run(output, manifest, "third", "new", (), Retry())
    compact.compact(output.url, 100)
    new, texts = exported("one")
    assert (new, texts["row-9"]) == (1, "new 9")
    assert exported("two") == (ROWS, texts)


def test_a_row_that_left_the_manifest_stays(begun):
    output, manifest = begun
    kept = pq.read_table(manifest).slice(0, ROWS - 1)  # without row-21, an error row
    pq.write_table(kept, manifest)
    told = []
    with pytest.raises(JobError, match="no longer in the manifest"):  # as every run has it
        run(output, manifest, "again", "new", (), Retry(), told)
    with pytest.raises(JobError, match="manifest"):
        Retry(changed={"manifest": "other"})


def test_the_job_is_found_in_the_output_without_secrets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = storage.resolve("out")
    job = make_job("m.parquet", "out", image__max_pixels=50176)
    save_job(output, job, "run")
    note = read_job(output)
    assert note is not None
    found = job_of(note, "out", {"generation.temperature": 0.5})
    assert found.manifest == str(tmp_path / "m.parquet")
    assert (found.image.max_pixels, found.generation.temperature) == (50176, 0.5)
    secret = make_job("https://user:hunter2@host/m.parquet?sig=hunter2", "out")
    save_job(output, secret, "run")
    assert "hunter2" not in storage.read(output / "_mediamill/job.json").decode()
    note = read_job(output)
    assert note is not None
    with pytest.raises(JobError, match="manifest had a secret"):
        job_of(note, "out", {})


def kills(what, stride, tmp_path):
    where = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder:
        program = "tests.pipeline.retry.retry_kills"
        command = [sys.executable, "-m", program, folder, what, str(stride)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_killed_at_some_changes(tmp_path):
    report = kills("retry", 19, tmp_path)
    assert report["moments"] > 60
    assert report["kills"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("what", ["retry", "deleted"])
def test_killed_at_each_change(what, tmp_path):
    report = kills(what, 1, tmp_path)
    assert report["kills"] > 60


def object_store(output, tmp_path, monkeypatch, filesystem, steps):
    """Kills a retry at these changes of an object store, with a look at what readers see."""
    manifest = retry_kills.write_manifest(tmp_path)
    for step in steps:
        for name in storage.list_files(output):
            storage.remove(output / name)
        run(output, manifest, "first", "text", ERRORS)
        count = iter(range(1, 1_000_000))
        dead = dies(
            lambda: run(output, manifest, "killed", "new", (), Retry()),
            monkeypatch,
            lambda name, path: next(count) >= step,  # noqa: B023
        )
        check_moment(output, True, filesystem)
        run(output, manifest, "resumed", "new", (), Retry())
        assert_redone(output, filesystem)
        if not dead:
            return step
    return step


def test_killed_on_an_object_store(tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    output = storage.resolve("memory://mill/out")
    object_store(output, tmp_path, monkeypatch, memory, range(2, 1000, 9))


@pytest.mark.slow
def test_killed_at_each_change_on_s3(s3, tmp_path, monkeypatch):
    output = storage.resolve(f"{s3}/kills/{tmp_path.name}")
    filesystem = fsspec.filesystem("s3", use_listings_cache=False)
    last = object_store(output, tmp_path, monkeypatch, filesystem, range(1, 1000))
    assert last > 18


def test_bitmaps_of_a_grown_file():
    from mediamill.pipeline.ledger.bitmaps import bits_of, is_marked, mark

    bitmap = np.zeros(2, np.uint8)
    mark(bitmap, np.array([0, 9, 15]))
    assert bits_of(bitmap, 8, 20).tolist() == [False, True, *[False] * 5, True, *[False] * 4]
    assert is_marked(bitmap, np.array([0, 1, 15, 16, 99])).tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]


def test_copied_rows_are_counted_once_when_others_are_gone(begun):
    output, manifest = begun
    copied = next(Path(output.path).glob("kind=b/*.parquet"))
    shutil.copy(copied, copied.with_name("copy.parquet"))
    shutil.rmtree(Path(output.path) / "kind=a")
    told = []
    state = run(output, manifest, "next", "new", (), None, told)
    assert "4 rows of the output are there twice" in told
    (check,) = check_output(output.url)
    assert check.problems == (
        f"1 file ({copied.parent.name}/copy.parquet) is not of Mediamill; readers see 4 rows more",
    )
    copied.with_name("copy.parquet").unlink()
    rows = read_output(output.path)
    errors = sum(row["status"] == "error" for row in rows)
    assert (state.counts.ok, state.counts.errors) == (ROWS - errors, {"fetch_timeout": errors})
    assert check_output(output.url)[0].exit_code == 0


def test_findings_are_counted_again_when_rows_are_gone(begun):
    output, manifest = begun
    state = ledger.load(output)
    state.counts.findings = {"cut_off": 5}
    shutil.rmtree(Path(output.path) / "kind=a")
    opened = open_manifest(str(manifest), state.files, state.header)
    for name in visible_files(output):
        path = (output / name).path
        table = pq.read_table(path, partitioning=None)
        number = table.schema.get_field_index(c.FINISH_REASON)
        reasons = pa.array(["length"] * len(table), pa.string())
        table = table.set_column(number, table.schema.field(number), reasons)
        pq.write_table(table, path)
    rules = CountRules((Question(),))
    counts = find_lost(output, state, opened, take_inventory(output, state).files, rules).counts
    rows = read_output(output.path)
    assert counts.findings["cut_off"] == counts.ok == sum(row["status"] == "ok" for row in rows)
