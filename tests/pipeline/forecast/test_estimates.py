"""Estimates of totals, against populations whose totals are known."""

import numpy as np
import pytest

from mediamill.pipeline.forecast.estimates import Estimate, Frame, allocate, divide, estimate, total


def _population(rng, rows):
    """A few huge rows among many small ones; the value follows the size, with noise."""
    sizes = np.where(
        rng.random(rows) < 0.02, rng.uniform(5e5, 3e6, rows), rng.uniform(1e3, 5e3, rows)
    )
    values = np.minimum(sizes / 784, 1000.0) * rng.uniform(0.8, 1.2, rows) + 20
    return sizes, values


def _estimated(rng, sizes, values, measured, frame_rows=None):
    chosen = np.arange(len(sizes))
    if frame_rows is not None:
        chosen = rng.choice(len(sizes), frame_rows, replace=False)
    frame = Frame(len(sizes), divide(sizes[chosen]), {"size": sizes[chosen]})
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(frame.stratum == n))[:5] for n in frame.strata]
    )
    while rows.size < measured:
        left = {
            n: int((frame.stratum == n).sum() - (frame.stratum[rows] == n).sum())
            for n in frame.strata
        }
        wanted = allocate(frame, rows, values[chosen][rows], left, 40)
        free = np.setdiff1d(np.arange(frame.rows), rows)
        more = [rng.permutation(free[frame.stratum[free] == n])[:k] for n, k in wanted.items()]
        rows = np.concatenate([rows, *more])
    return estimate(frame, rows, values[chosen][rows], "size")


@pytest.mark.parametrize("frame_rows", [None, 3000])
def test_intervals_of_skewed_totals_hold_the_truth_nine_times_in_ten(frame_rows):
    rng = np.random.default_rng(1)
    inside, offs, widths = 0, [], []
    for _ in range(30):
        sizes, values = _population(rng, 8000)
        found = _estimated(rng, sizes, values, 240, frame_rows)
        true = values.sum()
        inside += found.low <= true <= found.high
        offs.append(abs(found.value / true - 1))
        widths.append(found.relative)
    assert inside >= 22  # 27 of 30 are expected
    plain = np.std(values) / np.mean(values) / np.sqrt(240)
    assert (
        np.mean(offs) < (0.2 if frame_rows is None else 0.5) * plain
    )  # better than a random sample of as many rows
    assert np.mean(offs) < np.mean(widths)


def test_all_rows_measured_is_exact():
    sizes = np.arange(50.0)
    values = sizes**2
    frame = Frame(50, divide(sizes), {"size": sizes})
    assert estimate(frame, np.arange(50), values, "size") == Estimate.exact(values.sum())


def test_a_stratum_without_a_measured_row_widens_the_interval():
    sizes = np.concatenate([np.full(90, 1.0), np.full(10, np.nan)])
    frame = Frame(100, divide(sizes), {"size": sizes})
    assert len(frame.strata) == 2
    values = np.linspace(1, 3, 90)
    found = estimate(frame, np.arange(90), values, "size")
    assert found.low < found.value < found.high


def test_rows_that_were_drawn_together_count_for_less():
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(20), 50)
    values = rng.normal(100, 1, 1000) + 30 * rng.normal(size=20)[clusters]
    ones = np.ones(1000)
    rows = np.arange(1000)
    alone = estimate(Frame(10**5, divide(ones), {"size": ones}), rows, values, "size")
    together = estimate(Frame(10**5, divide(ones), {"size": ones}, clusters), rows, values, "size")
    assert together.value == alone.value
    assert together.relative > 4 * alone.relative


def test_few_huge_sizes_are_a_stratum_of_their_own():
    sizes = np.concatenate([np.full(980, 10.0) + np.arange(980) / 1e3, np.full(20, 1e6)])
    strata = divide(sizes)
    assert set(strata[:980]) & set(strata[980:]) == set()
    assert strata[980:].min() == strata[980:].max()


def test_sums_and_factors():
    one, two = Estimate(10, 7, 13), Estimate(20, 16, 24)
    assert total([one, two]) == Estimate(30, 25, 35)
    assert one.times(2) == Estimate(20, 14, 26)
    assert Estimate.exact(100).with_spread(0.2) == Estimate(100, 80, 120)
