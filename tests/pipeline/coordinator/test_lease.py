"""A run that is alive keeps the next one away; a dead run does not, however it ended."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.coordinator.lease import Lease, hold
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ledger.ledger import HIDDEN
from mediamill.pipeline.storage import storage

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from mediamill.pipeline.storage import storage
from mediamill.pipeline.coordinator.lease import hold
with hold(storage.resolve(sys.argv[1]), "other"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    if request.param == "local":
        return storage.resolve(str(tmp_path / "out"))
    url = f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    return storage.resolve(url)


def place(output):
    return output / HIDDEN / "lease.json"


def left_by(output, **changes):
    """Stores and returns the lease of a run on another machine."""
    stored = replace(Lease.of_this_process("other"), machine="far", kernel="another", **changes)
    storage.put(place(output), lease._encode(stored))
    return stored


def test_the_lease_exists_while_it_is_held(output):
    for run in ("first", "second"):
        with hold(output, run):
            assert lease._load(place(output)).run == run
        assert not storage.exists(place(output))


def test_a_process_of_this_machine_is_alive_until_it_is_not(output, monkeypatch):
    monkeypatch.setattr(lease, "_EXPIRY_S", 10_000.0)  # this test must not wait
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, output.url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = rf"found run other at work on it \(process {holder.pid} on machine"
        with pytest.raises(RunError, match=message), hold(output, "mine"):
            pass
        assert lease._load(place(output)).run == "other"
    finally:
        holder.kill()
    # Its parent has not waited for it: there still is a process of that number.
    with hold(output, "mine"):
        assert lease._load(place(output)).run == "mine"
    holder.communicate()


def test_another_machine_with_heartbeats_is_alive(output, monkeypatch):
    monkeypatch.setattr(lease, "_EXPIRY_S", 10_000.0)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    other, ended = left_by(output), threading.Event()
    monkeypatch.setattr(lease, "_HEARTBEAT_S", 0.2)
    heartbeat = threading.Thread(target=lease._heartbeat, args=(place(output), other, ended))
    heartbeat.start()
    try:
        with pytest.raises(RunError, match="on machine far"), hold(output, "mine"):
            pass
    finally:
        ended.set()
        heartbeat.join()


def test_another_machine_without_heartbeats_is_dead_after_a_while(output, monkeypatch):
    monkeypatch.setattr(lease, "_EXPIRY_S", 0.3)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    left_by(output, at=time.time() + 5000)  # its clock is not trusted
    with hold(output, "mine"):
        assert lease._load(place(output)).run == "mine"


@pytest.mark.parametrize("left", ["old", "damaged", "empty"])
def test_an_old_or_damaged_lease_is_not_waited_for(output, left, monkeypatch):
    monkeypatch.setattr(lease, "_EXPIRY_S", 10_000.0)
    if left == "old":
        left_by(output, at=time.time() - 3600)
    else:
        storage.put(place(output), b"" if left == "empty" else b'{"run": 5, "')
    with hold(output, "mine"):
        assert lease._load(place(output)).run == "mine"


def test_a_run_leaves_the_lease_of_its_successor_alone(output, monkeypatch):
    monkeypatch.setattr(lease, "_HEARTBEAT_S", 0.05)
    with hold(output, "paused"):
        other = left_by(output)
        time.sleep(0.5)  # some heartbeats
        assert lease._load(place(output)) == other
    assert lease._load(place(output)) == other


def test_of_runs_that_start_at_once_one_goes_on(output):
    start, ended = threading.Barrier(6), threading.Event()

    def run(number):
        start.wait()
        try:
            with hold(output, f"run-{number}"):
                ended.wait(60)
        except RunError:
            return False
        return True

    with ThreadPoolExecutor(6) as runs:
        results = [runs.submit(run, number) for number in range(6)]
        while sum(result.done() for result in results) < 5:
            time.sleep(0.05)
        ended.set()
    assert sum(result.result() for result in results) == 1
