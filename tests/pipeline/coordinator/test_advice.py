"""The key that would have kept the engines busy, and where the time went."""

import pytest

from mediamill.pipeline.coordinator.advice import advice
from mediamill.pipeline.coordinator.utilization import (
    BUSY,
    CALL_MS,
    DECODE_MS,
    FETCH_MS,
    STEP_MS,
    UP,
    WRITE_MS,
    CallTimes,
    bound_by,
    engine_rate,
    stage_shares,
)


def counted(engine, prepare=1.0, fetch=0.1, decode=0.7, up=100_000):
    """Counters of a run: engines and workers that were busy so much of their time."""
    return {
        "prepare" + UP: up,
        "prepare" + BUSY: int(prepare * up),
        "generate" + UP: up,
        "generate" + BUSY: int(engine * up),
        CALL_MS: 10_000,
        FETCH_MS: int(10_000 * fetch),
        DECODE_MS: int(10_000 * decode),
        STEP_MS: int(engine * up),
        WRITE_MS: int(0.05 * up),
    }


def test_shares_of_the_workers_time_add_up_to_their_utilization():
    shares = stage_shares(counted(0.4, prepare=0.8), seconds=100.0)
    assert shares == pytest.approx(
        {"fetch": 0.08, "decode": 0.56, "prepare": 0.16, "engine": 0.4, "write": 0.05}
    )
    assert bound_by("prepare", shares) == "decode"
    assert bound_by("generate", shares) == "engine"
    assert bound_by(None, shares) is None
    assert stage_shares({}) == {}


@pytest.mark.parametrize(
    ("counters", "workers", "most", "expected"),
    [
        (
            counted(0.5),
            6,
            32,
            "resources.prepare_workers=12 would have kept the engines busy: the engines worked "
            "50% of their time and waited for rows",
        ),
        (counted(0.25), 6, 12, "resources.prepare_workers=12, the most that the machines have"),
        (counted(0.5), 6, 6, None),  # there is no room
        (counted(0.95), 6, 32, None),  # nothing to gain
        (counted(0.6, prepare=0.3), 6, 32, None),  # the workers are not what is waited for
        (counted(0.5, up=10_000), 6, 32, None),  # too short to tell
        (counted(0.5, fetch=0.8, decode=0.1), 6, 6, "fetch.at_once=32 may keep the engines busy"),
        ({}, 6, 32, None),
    ],
)
def test_only_what_can_help_is_advised(counters, workers, most, expected):
    found = advice(counters, workers, most, fetches=16)
    assert found is None if expected is None else found is not None and found.startswith(expected)


def test_the_ceiling_of_an_engine_is_its_rate_while_it_works():
    assert engine_rate({STEP_MS: 20_000}, 1000) == 50.0
    assert engine_rate({}, 1000) is None


def test_times_are_taken_once_and_lose_nothing():
    now = 0.0
    times = CallTimes(lambda: now)
    for _ in range(3):
        with times.measured("a"):
            now += 1.0005
    assert times.take() == {"a": 3001}
    assert times.take() == {"a": 0}
    times.add("a", 0.0006)
    assert times.take() == {"a": 1}  # what was below a millisecond before

    def slow():
        nonlocal now
        for item in (1, 2):
            now += 2
            yield item

    assert list(times.waits("b", slow())) == [1, 2]
    assert times.take()["b"] == 4000
