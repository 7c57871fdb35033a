"""Compaction: no row is lost or doubled, at any moment, by kills, late tasks or other runs."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mediamill.pipeline import compact as compaction_run
from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ledger import compaction, ledger, publish, recovery
from mediamill.pipeline.ledger.journal import readable_files
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.ledger.compaction_kills import (
    IDS,
    assert_compacted,
    exact_ids,
    glob_ids,
    nightly_runs,
)
from tests.pipeline.ledger.kill_points import ROWS, begin

ROOT = Path(__file__).parents[3]
MEMORY = Path("/dev/shm")  # hundreds of fsyncs are slow on a disk


def killed(tmp_path, *arguments):
    where = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder:
        program = "tests.pipeline.ledger.compaction_kills"
        command = [sys.executable, "-m", program, folder, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("layout", ["partitioned", "flat", "one-by-one"])
def test_killed_at_some_steps_and_seen_at_all(tmp_path, layout):
    found = killed(tmp_path, layout, 17)
    assert found["moments"] > 40
    assert found["kills"] > 2
    assert found["fewest"] == ROWS or layout == "one-by-one"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["partitioned", "flat", "one-by-one"])
def test_killed_at_every_step(tmp_path, layout):
    assert killed(tmp_path, layout)["kills"] > 40


@pytest.fixture
def output(tmp_path):
    place = storage.resolve(str(tmp_path / "out"))
    nightly_runs(place, ())
    return place


def test_files_have_the_wanted_size_and_order(output):
    before = len(publish.visible_files(output))
    names = publish.visible_files(output)
    ids = [
        one for name in names for one in pq.read_table(output.path + "/" + name)["id"].to_pylist()
    ]
    done = compaction_run.compact(output.url, 9)
    assert (done.files_before, done.files_after) == (before, 3)
    after = [pq.ParquetFile(f"{output.path}/{name}") for name in publish.visible_files(output)]
    assert [one.metadata.num_rows for one in after] == [9, 9, 4]
    assert [one for file in after for one in file.read(["id"])["id"].to_pylist()] == ids
    assert_compacted(output, before)
    again = compaction_run.compact(output.url, 9)
    assert (again.files_before, again.files_after) == (3, 3)
    assert compaction_run.compact(output.url, 1000).files_after == 1
    assert_compacted(output, before)


def test_files_and_rights_of_others_stay(tmp_path):
    output = storage.resolve(str(tmp_path / "out"))
    nightly_runs(output, ("kind",))
    note, alias = Path(output.path, "kind=a", "notes.txt"), Path(output.path, "kind=b", "link")
    note.write_text("mine")
    note.parent.chmod(0o750)
    alias.symlink_to(note)
    done = compaction_run.compact(output.url, 100)
    assert done.skipped == ("kind=b",)
    assert note.read_text() == "mine"
    assert note.parent.stat().st_mode & 0o777 == 0o750
    assert glob_ids(output.path) == IDS


def test_a_run_at_work_is_not_disturbed(output):
    with lease.hold(output, "busy"), pytest.raises(RunError, match="found run busy at work"):
        compaction_run.compact(output.url, 9)


def test_another_run_that_begins_stops_it(output, monkeypatch):
    merge = compaction._merge

    def late(*arguments):
        merged = merge(*arguments)
        if ledger.load(output).run != "newer":
            begin(output, "newer")
        return merged

    monkeypatch.setattr(compaction, "_merge", late)
    before = publish.visible_files(output)
    with pytest.raises(RunError, match="newer"):
        compaction_run.compact(output.url, 9)
    assert publish.visible_files(output) == before
    monkeypatch.undo()
    compaction_run.compact(output.url, 9)
    assert_compacted(output, len(before))


def test_a_file_that_a_dead_task_publishes_again_counts_once(output):
    name = publish.visible_files(output)[0]
    content = storage.read(output / name)
    compaction_run.compact(output.url, 9)
    storage.put(output / name, content)  # the task was asleep since its check
    done = compaction_run.compact(output.url, 9)
    assert done.files_after == 3
    assert not storage.exists(output / name)
    assert glob_ids(output.path) == IDS


def test_on_an_object_store(s3, tmp_path, monkeypatch):
    output = storage.resolve(f"{s3}/compact/{tmp_path.name}")
    nightly_runs(output, ("kind",))
    before = len(publish.visible_files(output))

    class KilledError(BaseException):
        pass

    def dying(place):
        if "lease" in place.path:
            return remove(place)
        steps.append(place.path)
        assert exact_ids(output) == IDS
        if len(steps) >= 4:
            raise KilledError
        return remove(place)

    steps, remove = [], storage.remove
    monkeypatch.setattr(compaction, "_THREADS", 1)
    monkeypatch.setattr(storage, "remove", dying)
    with pytest.raises(KilledError):
        compaction_run.compact(output.url, 9)
    monkeypatch.undo()
    assert len(steps) >= 4
    assert not storage.exists(output / recovery.SUCCESS)
    assert exact_ids(output) == IDS
    assert not compaction_run.compact(output.url, 9).atomic
    assert exact_ids(output) == IDS
    assert len(readable_files(output)) < before
    assert storage.exists(output / recovery.SUCCESS)
    assert recovery.is_settled(output, ledger.load(output))


def test_what_is_no_output_is_refused(tmp_path):
    with pytest.raises(JobError, match="found no log"):
        compaction_run.compact(str(tmp_path), 9)
