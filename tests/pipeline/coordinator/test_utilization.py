"""How busy a process is, and which stage the others wait for."""

import threading

import pytest

from mediamill.pipeline.coordinator.utilization import (
    ACTIVE,
    BUSY,
    SILENT,
    UP,
    UtilizationMeter,
    binds,
    shares,
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def told(calls, steps):
    """Busy and up milliseconds after calls that begin and end at the times of `steps`."""
    clock, heard = Clock(), []
    meter = UtilizationMeter(calls, lambda *both: heard.append(both), clock)
    open_calls = []
    for time_s, begins in steps:
        clock.now = time_s
        if begins:
            open_calls.append(meter.working())
            open_calls[-1].__enter__()
        else:
            open_calls.pop().__exit__(None, None, None)
    return tuple(sum(numbers) for numbers in zip(*heard, strict=True))


@pytest.mark.parametrize(
    ("calls", "steps", "expected"),
    [
        (1, [(1, True), (3, False)], (2000, 3000)),
        (1, [(0, True), (1, True), (3, False), (4, False)], (3000, 3000)),  # two side by side
        (4, [(0, True), (4, False)], (1000, 4000)),
        (2, [(0, True), (0, True), (2, False), (6, False)], (4000, 6000)),
        (1, [(0, True), (10, False), (18, True), (30, False)], (22_000, 30_000)),
    ],
)
def test_time_of_work(calls, steps, expected):
    assert told(calls, steps) == expected


def test_threads_lose_no_time():
    clock, heard = Clock(), []
    meter = UtilizationMeter(1, lambda *both: heard.append(both), clock)
    inside, leave = threading.Barrier(9), threading.Event()

    def call():
        with meter.working():
            inside.wait()
            leave.wait()

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    inside.wait()
    clock.now = 5.0
    leave.set()
    for thread in threads:
        thread.join()
    assert [sum(numbers) for numbers in zip(*heard, strict=True)] == [5000, 5000]


@pytest.mark.parametrize(
    ("prepare", "generate", "expected"),
    [(0.99, 0.6, "prepare"), (0.6, 0.99, "generate"), (1, 1, "generate"), (0.3, 0.4, None)],
)
def test_the_busiest_stage_binds(prepare, generate, expected):
    counted = {
        "prepare" + BUSY: round(prepare * 1e6),
        "prepare" + UP: 10**6,
        "generate" + BUSY: round(generate * 1e6),
        "generate" + UP: 10**6,
    }
    assert shares(counted) == pytest.approx({"prepare": prepare, "generate": generate})
    assert binds(shares(counted)) == expected


def test_who_has_prepared_all_long_ago_holds_nobody_up():
    counted = {"prepare" + BUSY: 990, "prepare" + UP: 1000}
    counted |= {"generate" + BUSY: 7000, "generate" + UP: 10_000}
    assert binds(shares(counted)) == "prepare"
    assert binds(shares({**counted, ACTIVE: 3000, SILENT: 0})) == "prepare"
    done = {**counted, ACTIVE: 3000, SILENT: 17_000}
    assert binds(shares(done)) == "generate"
    assert shares(done)["prepare"] == pytest.approx(0.99 * 3 / 20)


def test_nothing_binds_before_anything_is_told():
    assert shares({"prepared": 3}) == {}
    assert binds({}) is None
