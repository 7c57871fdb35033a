"""The rate and the estimate that a person sees."""

from random import Random

import pytest

from mediamill.pipeline.coordinator.coordinator import Coordinator
from mediamill.pipeline.ray_cluster.metrics import Rate, eta_s
from mediamill.schemas.job import Limits, Resources


def test_the_rate_is_that_of_the_recent_past():
    rate = Rate()
    assert rate.update(20, 0) == 0
    assert rate.update(21, 100) == 100
    for second in range(22, 182):
        recent = rate.update(second, 100 + 10 * (second - 21))
    assert 9.9 < recent < 10.1
    assert eta_s(500, recent) == pytest.approx(50, rel=0.02)
    assert eta_s(500, 0) is None
    for second in range(182, 482):  # nothing more comes
        recent = rate.update(second, 1710)
    assert recent < 2


def runs(rows, seconds_per_row, call_rows, calls, seed):
    """Yields the times at which calls end, and the rows by then: `calls` of them run at once."""
    random, time_s, done = Random(seed), 0.0, 0
    while done < rows:
        wave = min(calls * call_rows, rows - done)
        time_s += wave * seconds_per_row * random.uniform(0.7, 1.3)
        while wave > 0:  # a full engine's calls end within a short time
            time_s += random.uniform(0, 0.1) * seconds_per_row * call_rows
            done += min(call_rows, wave)
            wave -= call_rows
            yield time_s, done


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("rows", "seconds_per_row", "call_rows", "calls"),
    [(3000, 0.015, 16, 4), (100_000, 0.02, 64, 4), (2000, 5.0, 8, 2), (500, 0.5, 4, 1)],
)
def test_the_remaining_time_is_right_within_a_fifth_after_a_tenth(
    rows, seconds_per_row, call_rows, calls, seed
):
    ends = list(runs(rows, seconds_per_row, call_rows, calls, seed))
    total_s, rate, wrong, seen = ends[-1][0], Rate(), [], 0
    poll_s = max(0.5, total_s / 2000)
    for number in range(int(0.9 * total_s / poll_s)):
        now = number * poll_s
        while ends[seen][0] <= now:
            seen += 1
        done = ends[seen - 1][1] if seen else 0
        left_s = eta_s(rows - done, rate.update(now + 20, done))
        if done >= 0.1 * rows and left_s is not None:
            wrong.append(abs(left_s - (total_s - now)) / (total_s - now))
    assert sorted(wrong)[int(0.9 * len(wrong))] < 0.2


def test_counters_add_up(tmp_path):
    coordinator = Coordinator(str(tmp_path), "run", Resources(), Limits())
    for number in (3, 4):
        coordinator.add({"prepared": number})
    coordinator.add({"generated": 1})
    counters = coordinator.counters()
    assert (counters["prepared"], counters["generated"]) == (7, 1)
