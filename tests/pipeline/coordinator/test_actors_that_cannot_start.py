"""Actors that cannot start end the run with their own last error, on a real Ray cluster."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mediamill.pipeline.coordinator.coordinator import start_coordinator
from mediamill.pipeline.coordinator.drain import DrainCallback, RunMonitor, Stop
from mediamill.pipeline.faults import PermanentError
from mediamill.pipeline.run import Stages, run
from mediamill.schemas.job import Limits, Resources
from tests.pipeline.coordinator import unloadable_stages
from tests.pipeline.coordinator.faulty_stages import FaultyGenerate, FaultyPrepare
from tests.pipeline.world import make_job, write_manifest

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def job(tmp_path):
    row = {"uri": "x", "prompt": "be good"}
    rows = [{"id": f"row-{number}", **row} for number in range(40)]
    return make_job(write_manifest(tmp_path / "m.parquet", rows), tmp_path / "out")


def tries(job):
    return len(Path(f"{job.output}-tries").read_text().splitlines())


@pytest.mark.parametrize(
    ("pool", "stage", "message", "in_job"),
    [
        (
            "prepare",
            "LacksLibrary",
            "a process that prepares rows could not be loaded 3 times in a row: "
            "ModuleNotFoundError: No module named 'a_library_that_no_machine_has'",
            False,
        ),
        (
            "generate",
            "IsKilled",
            "an engine could not be loaded 3 times in a row: its process was killed while it "
            "loaded; the machine may lack memory (see Ray's logs)",
            False,
        ),
        pytest.param(
            "generate",
            "RefusesModel",
            "an engine could not be loaded 3 times in a row: model: found 3 layers, expected 4",
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "prepare",
            "ExitsAtImport",
            "a process that prepares rows could not be loaded 3 times in a row: "
            "SystemExit: the library wants another machine",
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "prepare",
            "IsKilled",
            "a process that prepares rows could not be loaded 3 times in a row: its process was "
            "killed while it loaded; the machine may lack memory (see Ray's logs)",
            False,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_worker_that_cannot_load_ends_the_run(
    job, ray_cluster, capfd, pool, stage, message, in_job
):
    broken = getattr(unloadable_stages, stage)
    stages = Stages(
        broken if pool == "prepare" else FaultyPrepare,
        broken if pool == "generate" else FaultyGenerate,
    )
    started = time.monotonic()
    with pytest.raises(PermanentError) as error:
        run(job, stages=stages)
    assert (str(error.value), error.value.in_job) == (message, in_job)
    assert tries(job) in (3, 4)  # a killed process is noticed when the next one starts
    assert time.monotonic() - started < 150, "a quiet machine takes 10 s"
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed
    assert len(printed.splitlines()) < 20


@pytest.mark.slow
def test_a_stage_that_the_workers_cannot_import_ends_the_run(
    job, ray_cluster, tmp_path, monkeypatch
):
    (tmp_path / "only_here.py").write_text("class Stage:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here

    started = time.monotonic()
    with pytest.raises(PermanentError, match="No module named 'only_here'"):
        run(job, stages=Stages(only_here.Stage, FaultyGenerate))
    assert time.monotonic() - started < 150
    del sys.modules["only_here"]


def monitor(coordinator):
    return RunMonitor(coordinator, DrainCallback("x"), Stop(), 1.0)


def poll_until_it_raises(coordinator):
    watch, until = monitor(coordinator), time.monotonic() + 150
    while time.monotonic() < until:
        watch.poll()
        time.sleep(0.1)
    raise AssertionError("the coordinator is waited for")


def test_a_coordinator_that_cannot_start_ends_the_run(ray_cluster):
    coordinator = start_coordinator("nope://user:SECRET@host/out", "run", Resources(), Limits())
    with pytest.raises(PermanentError) as error:
        poll_until_it_raises(coordinator)
    assert str(error.value).startswith(
        "the coordinator, the process that owns the ledger, cannot run: "
    )
    assert "nope" in str(error.value)
    assert "SECRET" not in str(error.value)


@pytest.mark.slow
def test_a_coordinator_that_is_killed_each_time_it_starts_ends_the_run(ray_cluster, tmp_path):
    from ray._private import state

    coordinator = start_coordinator(str(tmp_path / "out"), "run", Resources(), Limits())
    ended = threading.Event()

    def kill():
        killed = {0}
        while not ended.is_set():
            pid = state.actors(coordinator._actor_id.hex()).get("Pid", 0)
            if pid not in killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(PermanentError, match=r"was killed 3 times, and no row was finished"):
            poll_until_it_raises(coordinator)
    finally:
        ended.set()
        killer.join()
