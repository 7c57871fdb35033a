"""Says how far a number has shifted between the rows of two outputs, with an interval."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mediamill.pipeline.diff.hashes import Floats

SAMPLE = 20_000  # pairs of which medians and intervals are computed
_DRAWS = 500
_SEED = 0x5EED


@dataclass(frozen=True)
class Shift:
    """rows: that have the number in both outputs. low, high: 95 % interval of the mean's shift.

    changed: rows whose numbers differ.
    """

    rows: int
    changed: int
    mean_a: float
    mean_b: float
    low: float
    high: float
    median_a: float
    median_b: float

    @property
    def shift(self) -> float:
        """Of the mean, from A to B."""
        return self.mean_b - self.mean_a


class Pairs:
    """Collects the pairs of one number: sums of all, and a sample."""

    def __init__(self, tolerance: float) -> None:
        """tolerance: differences up to it are none."""
        self._tolerance = tolerance
        self._rows, self._changed = 0, 0
        self._sums = np.zeros(2)
        self._sample: list[Floats] = []

    def add(self, a: Floats, b: Floats, most: int) -> None:
        """Takes pairs in random order. most: of these, as many go into the sample."""
        known = np.isfinite(a) & np.isfinite(b)
        pairs = np.stack([a[known], b[known]])
        self._rows += pairs.shape[1]
        self._changed += int((np.abs(pairs[1] - pairs[0]) > self._tolerance).sum())
        self._sums += pairs.sum(axis=1)
        self._sample.append(pairs[:, :most].copy())

    def shift(self) -> Shift | None:
        """Returns the shift; None without rows."""
        if not self._rows:
            return None
        a, b = np.concatenate(self._sample, axis=1)
        differences = b - a
        rng = np.random.default_rng(_SEED)
        size = len(differences)
        means = [differences[rng.integers(0, size, size)].mean() for _ in range(_DRAWS)]
        low, high = np.quantile(means, (0.025, 0.975)) - differences.mean()
        # The sample's interval, as narrow as that of all rows.
        scale = (size / self._rows) ** 0.5
        mean_a, mean_b = self._sums / self._rows
        shift = mean_b - mean_a
        return Shift(
            self._rows,
            self._changed,
            float(mean_a),
            float(mean_b),
            float(shift + low * scale),
            float(shift + high * scale),
            float(np.median(a)),
            float(np.median(b)),
        )


def shifts_of(pairs: Mapping[str, Pairs]) -> dict[str, Shift]:
    """Returns the shifts of those numbers that there are rows of."""
    shifts = {name: collected.shift() for name, collected in pairs.items()}
    return {name: shift for name, shift in shifts.items() if shift is not None}
