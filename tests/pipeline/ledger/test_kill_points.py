"""A run that is killed at any step of its writing loses and doubles nothing."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import pytest

from mediamill.pipeline.ledger import ledger, snapshot
from mediamill.pipeline.storage import storage
from tests.pipeline.ledger import kill_points

ROOT = Path(__file__).parents[3]
MEMORY = Path("/dev/shm")  # hundreds of fsyncs are slow on a disk


def killed(tmp_path, *arguments):
    """Runs kill_points on a local disk, and returns its report."""
    where = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder:
        command = [sys.executable, "-m", "tests.pipeline.ledger.kill_points", folder, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_killed_at_every_step_and_resumed(tmp_path):
    found = killed(tmp_path)
    # Kills before the first file, between files, and after the last one were met.
    assert found["kills"] > 80
    assert {0, 4, 8, kill_points.ROWS} < set(found["rows_seen"])
    assert len(found["rows_seen"]) > 5


@pytest.mark.soak
def test_killed_again_and_again(tmp_path):
    killed(tmp_path, "1")


class Killed(BaseException):
    """The process is gone: nothing in it handles this."""


def kill_before(monkeypatch, condition):
    """Stops all changes of an object store from the first one on for which the condition holds."""
    dead = False

    def hooked(name, change):
        def call(place, *rest):
            nonlocal dead
            dead = dead or condition(name, place.path)
            if dead:
                raise Killed
            return change(place, *rest)

        return call

    for name in ("put", "put_file", "put_if_absent", "remove", "move"):
        monkeypatch.setattr(storage, name, hooked(name, getattr(storage, name)))


def dies(run, monkeypatch, condition):
    """Returns whether the run was killed before its end."""
    with monkeypatch.context() as patch:
        kill_before(patch, condition)
        try:
            run()
        except Killed:
            return True
    return False


@pytest.fixture
def few_records(monkeypatch):
    """Restores `snapshot.due`, which the runs change."""
    monkeypatch.setattr(snapshot, "due", snapshot.due)


def test_killed_at_every_change_of_an_object_store(monkeypatch, few_records):
    memory = fsspec.filesystem("memory")
    seen = set()
    for step in range(1, 1000):
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
        output = storage.resolve("memory://mill/out")
        kill_points.earlier_run(output)
        steps = iter(range(1, 1_000_000))
        dead = dies(
            lambda: kill_points.run(output, "killed"),  # noqa: B023
            monkeypatch,
            lambda name, path: next(steps) >= step,  # noqa: B023
        )
        seen.add(len(kill_points.assert_readable(output, memory)))
        kill_points.run(output, "resumed")
        kill_points.assert_finished(output, memory)
        if not dead:
            break
    assert step > 40
    assert len(seen) > 5


# In this order by one write task; a run is killed right before the last one.
DATA = ("put", ".parts")
LEDGER = ("put_if_absent", ".json")
FILE = ("put", ".parquet")
STEPS = {
    "before data": [DATA],
    "between data and ledger": [DATA, LEDGER],
    "after ledger": [DATA, LEDGER, FILE],
    "in publish": [DATA, LEDGER, FILE, LEDGER],
    "in cleanup": [DATA, LEDGER, FILE, LEDGER, ("remove", ".parts")],
    "in compaction": [("put", ".snapshot"), ("put", ".snapshot"), ("remove", ".json")],
    "before the end": [DATA, FILE, ("put", "_SUCCESS")],
}


def arrived(steps):
    """A condition that holds after changes like these, in this order."""
    left = list(steps)

    def condition(name, path):
        if left and (name, True) == (left[0][0], path.endswith(left[0][1])):
            left.pop(0)
        return not left

    return condition


@pytest.mark.parametrize("step", STEPS)
def test_killed_by_name_on_s3(step, s3, monkeypatch, few_records, tmp_path):
    output = storage.resolve(f"{s3}/kills/{tmp_path.name}")
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    kill_points.earlier_run(output)
    assert dies(lambda: kill_points.run(output, "killed"), monkeypatch, arrived(STEPS[step]))
    kill_points.assert_readable(output, fs)
    kill_points.run(output, "resumed")
    kill_points.assert_finished(output, fs)
    assert ledger.load(output).counts.rows == kill_points.ROWS
