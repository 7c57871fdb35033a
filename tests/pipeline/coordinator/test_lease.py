"""A run that is alive keeps the next one away; one that is dead does not, however it ended."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.coordinator.lease import Sign, held
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ledger.ledger import HIDDEN
from mediamill.pipeline.storage import storage

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from mediamill.pipeline.storage import storage
from mediamill.pipeline.coordinator.lease import held
with held(storage.resolve(sys.argv[1]), "other"):
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
    """The sign of a run on another machine."""
    sign = replace(Sign.of_this_process("other"), machine="far", kernel="another", **changes)
    storage.put(place(output), lease._data(sign))
    return sign


def test_it_is_there_while_it_lasts(output):
    for run in ("first", "second"):
        with held(output, run):
            assert lease._found(place(output)).run == run
        assert not storage.exists(place(output))


def test_a_process_of_this_machine_is_alive_until_it_is_not(output, monkeypatch):
    monkeypatch.setattr(lease, "_STALE_S", 10_000.0)  # nothing is waited for here
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, output.url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        words = rf"found run other at work on it \(process {holder.pid} on machine"
        with pytest.raises(RunError, match=words), held(output, "mine"):
            pass
        assert lease._found(place(output)).run == "other"
    finally:
        holder.kill()
    # Its parent has not waited for it: there still is a process of that number.
    with held(output, "mine"):
        assert lease._found(place(output)).run == "mine"
    holder.communicate()


def test_another_machine_that_beats_is_alive(output, monkeypatch):
    monkeypatch.setattr(lease, "_STALE_S", 10_000.0)
    monkeypatch.setattr(lease, "_LOOK_S", 0.05)
    sign, over = left_by(output), threading.Event()
    monkeypatch.setattr(lease, "_BEAT_S", 0.2)
    beating = threading.Thread(target=lease._beat, args=(place(output), sign, over))
    beating.start()
    try:
        with pytest.raises(RunError, match="on machine far"), held(output, "mine"):
            pass
    finally:
        over.set()
        beating.join()


def test_another_machine_that_is_silent_is_dead_after_a_while(output, monkeypatch):
    monkeypatch.setattr(lease, "_STALE_S", 0.3)
    monkeypatch.setattr(lease, "_LOOK_S", 0.05)
    left_by(output, at=time.time() + 5000)  # its clock is not believed
    with held(output, "mine"):
        assert lease._found(place(output)).run == "mine"


@pytest.mark.parametrize("left", ["old", "damaged", "empty"])
def test_what_nobody_can_hold_any_more_is_not_waited_for(output, left, monkeypatch):
    monkeypatch.setattr(lease, "_STALE_S", 10_000.0)
    if left == "old":
        left_by(output, at=time.time() - 3600)
    else:
        storage.put(place(output), b"" if left == "empty" else b'{"run": 5, "')
    with held(output, "mine"):
        assert lease._found(place(output)).run == "mine"


def test_who_was_overtaken_leaves_the_other_ones_sign_alone(output, monkeypatch):
    monkeypatch.setattr(lease, "_BEAT_S", 0.05)
    with held(output, "paused"):
        sign = left_by(output)
        time.sleep(0.5)  # some beats
        assert lease._found(place(output)) == sign
    assert lease._found(place(output)) == sign


def test_of_runs_that_start_at_once_one_goes_on(output):
    start, ended = threading.Barrier(6), threading.Event()

    def run(number):
        start.wait()
        try:
            with held(output, f"run-{number}"):
                ended.wait(60)
        except RunError:
            return False
        return True

    with ThreadPoolExecutor(6) as runs:
        found = [runs.submit(run, number) for number in range(6)]
        while sum(one.done() for one in found) < 5:
            time.sleep(0.05)
        ended.set()
    assert sum(one.result() for one in found) == 1
