"""A stale write task cannot put back a file that a compaction has replaced, wherever it woke up."""

import contextlib

import fsspec
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline import compact as compaction_run
from mediamill.pipeline.ledger import folder_swap, ledger, publish, recovery
from mediamill.pipeline.ledger.log import TakenOverError
from mediamill.pipeline.storage import storage
from tests.pipeline.ledger.compaction_kills import IDS, exact_ids, nightly_runs
from tests.pipeline.ledger.kill_points import ROWS, Calls, begin, write


def stale_group(output):
    """A group that a task of the run `stale` has to publish, and its content."""
    recovery.recover(output, begin(output, "stale"))
    calls, groups = Calls(output, "stale"), []
    commit = calls.commit

    def commit_only(rows):
        groups.extend(commit(rows).groups)
        return ledger.CommitReply()

    calls.commit = commit_only
    write(output, "stale", list(range(ROWS)), calls)
    return groups[0], publish.read_parts(output, groups)


def next_run_and_compaction(output):
    """Another run publishes the group in the stale task's place; then its file is replaced."""
    state = begin(output, "next")
    recovery.recover(output, state)
    recovery.flush(output, state)
    ledger.end(output, state, {})
    recovery.mark_finished(output, "{}")
    done = compaction_run.compact(output.url, 1000)
    assert done.files_after < done.files_before


@pytest.fixture(params=["local", "memory"])
def output(request, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_swap, "_GRACE_S", 0.0)
    if request.param == "local":
        yield storage.resolve(str(tmp_path / "out"))
        return
    fsspec.filesystem("memory").store.clear()
    yield storage.resolve("memory://permits/out")
    fsspec.filesystem("memory").store.clear()


def ids(output):
    tables = [
        pq.read_table((output / name).path, filesystem=output.fs)
        for name in publish.visible_files(output)
    ]
    return sorted(row for table in tables for row in table["id"].to_pylist())


@pytest.mark.parametrize("step", range(6))
def test_a_stale_task_sleeps_before_each_of_its_steps(output, step, monkeypatch):
    """The steps are its looks at the output, its write and its rename; beyond them, all is over."""
    group, contents = stale_group(output)
    steps, asleep = 0, False

    def late(call):
        def wrapped(*arguments, **options):
            nonlocal steps, asleep
            if not asleep:
                steps += 1
                if steps == step:
                    asleep = True
                    next_run_and_compaction(output)
                    asleep = False
            return call(*arguments, **options)

        return wrapped

    for place, name in (
        (storage, "exists"),
        (publish, "merged"),
        (storage, "put"),
        (publish.Path, "open"),
        (publish.Path, "rename"),
    ):
        monkeypatch.setattr(place, name, late(getattr(place, name)))
    asleep = step == 0
    if step == 0:
        next_run_and_compaction(output)
    with contextlib.suppress(TakenOverError):
        publish.publish(output, group, "stale", contents)
        assert steps < step, "the task did not see that a newer run had begun"
    monkeypatch.undo()
    if steps < step:
        next_run_and_compaction(output)
    assert ids(output) == IDS


def test_permits_are_those_of_the_newest_run(output):
    nightly_runs(output, ())
    assert publish.permits(output) == []  # of runs that have ended
    recovery.recover(output, begin(output, "one"))
    assert publish.permits(output) == ["one"]
    state = begin(output, "two")
    recovery.recover(output, state)
    assert publish.permits(output) == ["two"]
    with pytest.raises(TakenOverError):
        recovery.revoke_others(output, ledger.load(output), "one")
    assert publish.permits(output) == ["two"]
    recovery.flush(output, state)
    assert publish.permits(output) == []
    assert exact_ids(output) == IDS
