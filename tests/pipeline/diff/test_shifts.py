"""The interval of a shift holds the truth about as often as it says."""

import numpy as np

from mediamill.pipeline.diff.shifts import Pairs


def test_the_interval_covers_the_true_shift():
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a = rng.exponential(20.0, 4000)
        b = a + rng.normal(0.5, 8.0, 4000)
        pairs = Pairs(0.0)
        for start in range(0, 4000, 500):  # a fifth goes into the sample
            pairs.add(a[start : start + 500], b[start : start + 500], 100)
        shift = pairs.shift()
        assert shift is not None
        assert np.isclose(shift.shift, (b - a).mean())
        hits += shift.low <= 0.5 <= shift.high
    assert 52 <= hits <= 60


def test_only_pairs_of_numbers_count():
    pairs = Pairs(0.1)
    pairs.add(np.array([1.0, np.nan, 2.0]), np.array([1.05, 1.0, np.nan]), 9)
    shift = pairs.shift()
    assert shift is not None
    assert (shift.rows, shift.changed) == (1, 0)
