"""Rows wait for a later pass of their run, whatever dies meanwhile; each is written once."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mediamill.pipeline.coordinator.deferred import DeferredRows
from mediamill.pipeline.run import Drained, Stages, Stop, run
from tests import processes
from tests.pipeline.coordinator.faulty_stages import FaultyGenerate, FaultyPrepare
from tests.pipeline.world import assert_each_once, make_job, read_output, write_manifest

STAGES = Stages(FaultyPrepare, FaultyGenerate)
PROMPTS = {3: "no memory once", 40: "no memory once", 41: "no memory", 60: "unreachable"}
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def make(tmp_path):
    def job(prompts, count=120, **changes):
        rows = [
            {"id": f"row-{number:05}", "uri": "x", "prompt": prompts.get(number, "be good")}
            for number in range(count)
        ]
        manifest = write_manifest(tmp_path / "m.parquet", rows)
        changes = {"resources__batch_rows": 32, "retries__smaller": 2, **changes}
        return make_job(manifest, tmp_path / "out", **changes), [row["id"] for row in rows]

    return job


def answered(job):
    """How often each row was answered, by id."""
    lines = Path(f"{job.output}-traces/calls").read_text().split()
    return {name: lines.count(name) for name in lines}


def rows_of(job, ids):
    rows = read_output(job.output)
    assert_each_once(rows, ids)
    return {int(row["id"].removeprefix("row-")): row for row in rows}


def test_only_rows_with_a_try_left_are_done_again(make, ray_cluster):
    job, ids = make(PROMPTS)
    summary = run(job, stages=STAGES)
    rows = rows_of(job, ids)
    assert (summary.ok, summary.errors) == (118, {"engine_oom": 1, "fetch_failed": 1})
    assert summary.new_errors == summary.errors
    tries = {3: 2, 40: 2, 41: 3, 60: 2}
    assert {number: row["attempt"] for number, row in rows.items() if row["attempt"] > 1} == tries
    counts = answered(job)
    assert all(counts[f"row-{number:05}"] == tries.get(number, 1) for number in rows)
    history = rows[41]["attempt_history"]
    assert [entry["changed"] for entry in history] == [
        None,
        "1/2 of the pixels, or frames",
        "1/4 of the pixels, or frames",
    ]
    assert [entry["error_code"] for entry in history] == ["engine_oom"] * 3
    assert [entry["error_code"] for entry in rows[3]["attempt_history"]] == ["engine_oom", None]
    assert rows[0]["attempt_history"] is None


def test_a_short_run_makes_no_second_pass_for_fetches(make, ray_cluster):
    job, ids = make({7: "unreachable", 9: "fail"}, retries__after_s=3600)
    summary = run(job, stages=STAGES)
    row = rows_of(job, ids)[7]
    assert summary.errors == {"fetch_failed": 1, "engine_failed": 1}
    assert (row["attempt"], row["attempt_history"]) == (1, None)
    assert row["error_message"] == "injected; mediamill retry tries it again"
    assert answered(job)[row["id"]] == 1
    assert (Path(job.output) / "_SUCCESS").exists()


@pytest.mark.slow
def test_a_coordinator_that_dies_loses_no_row(make, ray_cluster):
    job, ids = make(PROMPTS)
    calls, killed = Path(f"{job.output}-traces/calls"), []

    def kill():
        end = time.monotonic() + 300
        while time.monotonic() < end and not killed:
            if calls.exists() and "row-00119" in calls.read_text():
                for pid in processes.descendants(os.getpid()):
                    if processes.title(pid).startswith("ray::Coordinator"):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = run(job, stages=STAGES)
    thread.join()
    assert killed
    rows = rows_of(job, ids)
    assert (summary.ok, summary.errors) == (118, {"engine_oom": 1, "fetch_failed": 1})
    assert rows[41]["attempt"] in (2, 3)


@pytest.mark.slow
def test_rows_that_wait_are_unfinished_when_the_run_is_stopped(make, ray_cluster):
    job, ids = make({5: "no memory", 6: "slow"}, count=60, resources__batch_rows=4)
    calls, stop = Path(f"{job.output}-traces/calls"), Stop()

    def ask():
        end = time.monotonic() + 300
        while time.monotonic() < end and not (calls.exists() and "row-00005" in calls.read_text()):
            time.sleep(0.01)
        stop.request(signal.SIGINT)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(Drained):
        run(job, stages=STAGES, stop=stop)
    thread.join()
    assert "row-00005" not in {row["id"] for row in read_output(job.output)}
    summary = run(job, stages=STAGES)
    assert rows_of(job, ids)[5]["attempt"] == 3
    assert (summary.rows, summary.errors) == (60, {"engine_oom": 1})


def test_rows_beyond_the_bound_are_refused():
    rows = DeferredRows()
    assert rows.defer(bytes(40 << 20))
    assert not rows.defer(bytes(40 << 20))
    assert rows.defer(bytes(20 << 20))
    assert [len(table) for table in rows.take_deferred()] == [40 << 20, 20 << 20]
    assert rows.defer(bytes(60 << 20))
