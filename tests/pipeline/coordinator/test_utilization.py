"""The utilization of a process, and the bottleneck of a run."""

import threading

import pytest

from mediamill.pipeline.coordinator.utilization import (
    ACTIVE,
    BUSY,
    FINISHED,
    UP,
    UtilizationMeter,
    bottleneck,
    pool_utilization,
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def reported(calls, steps):
    """Busy and up milliseconds after calls that begin and end at the times of `steps`."""
    clock, reports = Clock(), []
    meter = UtilizationMeter(calls, lambda *both: reports.append(both), clock)
    open_calls = []
    for time_s, begins in steps:
        clock.now = time_s
        if begins:
            open_calls.append(meter.working())
            open_calls[-1].__enter__()
        else:
            open_calls.pop().__exit__(None, None, None)
    return tuple(sum(numbers) for numbers in zip(*reports, strict=True))


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
    assert reported(calls, steps) == expected


def test_threads_lose_no_time():
    clock, reports = Clock(), []
    meter = UtilizationMeter(1, lambda *both: reports.append(both), clock)
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
    assert [sum(numbers) for numbers in zip(*reports, strict=True)] == [5000, 5000]


@pytest.mark.parametrize(
    ("prepare", "generate", "expected"),
    [(0.99, 0.6, "prepare"), (0.6, 0.99, "generate"), (1, 1, "generate"), (0.3, 0.4, None)],
)
def test_the_busiest_pool_is_the_bottleneck(prepare, generate, expected):
    counted = {
        "prepare" + BUSY: round(prepare * 1e6),
        "prepare" + UP: 10**6,
        "generate" + BUSY: round(generate * 1e6),
        "generate" + UP: 10**6,
    }
    assert pool_utilization(counted) == pytest.approx({"prepare": prepare, "generate": generate})
    assert bottleneck(pool_utilization(counted)) == expected


def test_a_pool_that_finished_long_ago_is_no_bottleneck():
    counted = {"prepare" + BUSY: 990, "prepare" + UP: 1000}
    counted |= {"generate" + BUSY: 7000, "generate" + UP: 10_000}
    assert bottleneck(pool_utilization(counted)) == "prepare"
    assert bottleneck(pool_utilization({**counted, ACTIVE: 3000, FINISHED: 0})) == "prepare"
    done = {**counted, ACTIVE: 3000, FINISHED: 17_000}
    assert bottleneck(pool_utilization(done)) == "generate"
    assert pool_utilization(done)["prepare"] == pytest.approx(0.99 * 3 / 20)


def test_there_is_no_bottleneck_before_the_first_report():
    assert pool_utilization({"prepared": 3}) == {}
    assert bottleneck({}) is None
