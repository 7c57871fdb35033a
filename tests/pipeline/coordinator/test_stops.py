"""Runs in which processes die, engines break or the user stops them, on a real Ray cluster.

The stages are simulated (faulty_stages.py), the deaths are not.
"""

import json
import threading
import time
from pathlib import Path

import pytest

from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.run import Drained, RunError, Stages, Stop, run
from mediamill.pipeline.storage import storage
from tests.pipeline.coordinator.faulty_stages import FaultyGenerate, FaultyPrepare
from tests.pipeline.world import assert_each_once, make_job, read_output, write_manifest

STAGES = Stages(FaultyPrepare, FaultyGenerate)
pytestmark = pytest.mark.timeout(400)  # a busy machine starts processes slowly


@pytest.fixture
def make(tmp_path):
    """Makes a job whose rows have these prompts, by number; returns it with the ids of its rows."""

    def job(prompts, count=120, **changes):
        rows = [
            {"id": f"row-{number:05}", "uri": "x", "prompt": prompts.get(number, "be good")}
            for number in range(count)
        ]
        manifest = write_manifest(tmp_path / "m.parquet", rows)
        changes = {"resources__batch_rows": 32, **changes}
        return make_job(manifest, tmp_path / "out", **changes), [row["id"] for row in rows]

    return job


def calls_with(job, event):
    """The ids of the rows of each call in which the event happened."""
    lines = Path(f"{job.output}-traces/calls").read_text().splitlines()
    entries = [line.partition(": ") for line in lines]
    return [ids.split() for name, _, ids in entries if name == event]


def assert_nothing_hidden(job):
    """Every finished row is visible, and nothing is left behind. Returns the rows."""
    seen = read_output(job.output)
    output = storage.resolve(job.output)
    assert len(seen) == ledger.load(output).counts.rows
    assert not storage.list_files(output / ledger.HIDDEN / "staged")
    return seen


def test_poison_rows_are_found_and_their_neighbours_go_on(make, ray_cluster):
    job, ids = make({7: "die in prepare", 50: "die in generate", 90: "break once"})
    summary = run(job, stages=STAGES)
    rows = read_output(job.output)
    assert_each_once(rows, ids)
    assert (summary.ok, dict(summary.errors)) == (118, {"poison": 2})
    assert summary.engines_replaced == 1
    for row in rows:
        if row["id"] in ("row-00007", "row-00050"):
            assert (row["text"], row["error_code"]) == (None, "poison")
            assert "while it was alone" in row["error_message"]
        else:
            assert (row["text"], row["status"]) == (row["id"], "ok")
    for stage, name in (("prepare", "row-00007"), ("generate", "row-00050")):
        calls = calls_with(job, f"died in {stage}")
        assert all(name in call for call in calls)
        assert len(calls) <= 4
        assert calls[-2:] == [[name], [name]]
        assert len(calls[0]) > 1


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        (
            {5: "break"},
            {"resources__max_engine_failures": 1},
            r"engines broke 2 times in this run, expected at most 1 \(resources.max_engine_fail.*"
            r"CUDA error: injected",
        ),
        (
            dict.fromkeys(range(0, 120, 4), "fail"),
            {"limits__max_error_rate": 0.2, "limits__error_rate_rows": 40},
            r"too many rows are errors: found \d+ of \d+ in this run \(engine_failed \d+\), "
            r"expected at most 20 %.*limits.max_error_rate",
        ),
        ({5: "swap"}, {}, "an answer came back to the wrong row: injected"),
        pytest.param({5: "raise"}, {}, "ValueError: unexpected: injected", marks=pytest.mark.slow),
    ],
    ids=["engines", "error rate", "identity", "mistake"],
)
def test_the_reason_of_a_stop_is_reported_and_finished_rows_stay(
    make, ray_cluster, prompts, changes, message
):
    job, ids = make(prompts, **changes)
    with pytest.raises(RunError, match=message):
        run(job, stages=STAGES)
    seen = assert_nothing_hidden(job)
    assert_each_once(seen, [row["id"] for row in seen])
    assert {row["id"] for row in seen} <= set(ids)
    (note,) = Path(job.output, ledger.HIDDEN, "runs").iterdir()
    assert json.loads(note.read_text())["stopped"]


def test_a_run_that_is_told_to_stop_finishes_what_has_begun(make, ray_cluster):
    slow = dict.fromkeys(range(0, 1000, 8), "slow")
    job, ids = make(slow, 1000, resources__batch_rows=32, rows_per_file=64)
    stop, ended = Stop(), []

    def work():
        try:
            ended.append(run(job, stages=STAGES, stop=stop))
        except RunError as error:
            ended.append(error)

    driver = threading.Thread(target=work)
    driver.start()
    begun = Path(f"{job.output}-traces", "calls")
    while driver.is_alive() and not (begun.exists() and calls_with(job, "answered")):
        time.sleep(0.1)
    requested = time.monotonic()
    stop.request()
    driver.join()
    assert time.monotonic() - requested < job.resources.grace_s
    assert isinstance(ended[0], Drained)
    assert "what had begun is finished" in str(ended[0])
    seen = assert_nothing_hidden(job)
    assert 0 < len(seen) < 1000
    begun = {name for call in calls_with(job, "answered") for name in call}
    assert {row["id"] for row in seen} == begun
    Path(f"{job.output}-traces", "hurry").touch()
    summary = run(job, stages=STAGES)
    assert summary.skipped == len(seen)
    assert_each_once(read_output(job.output), ids)


def test_a_run_stops_at_once_after_its_grace_time(make, ray_cluster):
    job, _ = make(dict.fromkeys(range(2000), "slow"), 2000, resources__grace_s=0.0)
    stop = Stop()

    def stop_once_begun():
        begun = Path(f"{job.output}-traces", "calls")
        while not (begun.exists() and calls_with(job, "answered")):
            time.sleep(0.1)
        time.sleep(2)  # the driver has polled the coordinator meanwhile
        stop.request()

    threading.Thread(target=stop_once_begun, daemon=True).start()
    with pytest.raises(Drained, match=r"resources.grace_s = 0 s did not suffice"):
        run(job, stages=STAGES, stop=stop)
    assert_nothing_hidden(job)


def test_a_run_that_is_told_to_stop_before_it_begins_needs_no_cluster(make):
    job, _ = make({})
    stop = Stop()
    stop.request(15)
    with pytest.raises(Drained) as error:
        run(job, stages=STAGES, stop=stop, address="nowhere:1")
    assert error.value.signal == 15
