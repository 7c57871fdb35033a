"""Counts numbers exactly into fine bins, in constant memory, and draws few bins of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BINS = 2**16


@dataclass(frozen=True)
class Bar:
    """rows: whose value lies in [low, high)."""

    low: float
    high: float
    rows: int


class Histogram:
    """The values of a column: step * (0 .. 65535) from `low` on; others count at the ends."""

    def __init__(self, low: float = 0.0, step: float = 1.0) -> None:
        self.low, self.step = low, step
        self.count, self.total = 0, 0.0
        self._bins = np.zeros(_BINS, np.int64)

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Counts values; those that are not finite are left out."""
        values = values[np.isfinite(values)]
        if not values.size:
            return
        self.count += values.size
        self.total += float(values.sum())
        bins = np.clip((values - self.low) / self.step, 0, _BINS - 1).astype(np.int64)
        self._bins += np.bincount(bins, minlength=_BINS)

    @property
    def mean(self) -> float:
        """0 without values."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Returns the value that this share of the values does not exceed; 0 without values."""
        if not self.count:
            return 0.0
        ranks = np.cumsum(self._bins)
        rank = min(max(1, int(np.ceil(share * self.count))), self.count)
        return self.low + self.step * int(np.searchsorted(ranks, rank))

    def bars(self, most: int = 24) -> tuple[Bar, ...]:
        """Returns at most `most` + 1 bars of equal width; the last has all larger values."""
        used = np.flatnonzero(self._bins)
        if not used.size:
            return ()
        first = int(used[0])
        ranks = np.cumsum(self._bins)
        last = int(np.searchsorted(ranks, np.ceil(0.995 * self.count)))
        width = _nice(max(1, -(-(last - first + 1) // most)))
        first -= first % width
        bars = []
        for start in range(first, last + 1, width):
            rows = int(self._bins[start : start + width].sum())
            bars.append(Bar(self._value(start), self._value(start + width), rows))
        start = first + width * len(bars)
        if more := int(self._bins[start:].sum()):
            bars.append(Bar(self._value(start), self._value(int(used[-1]) + 1), more))
        return tuple(bars)

    def _value(self, number: int) -> float:
        return round(self.low + self.step * number, 6)


def _nice(width: int) -> int:
    """Returns the least of 1, 2, 5, 10, 20, 50, ... that is not below `width`."""
    scale = 1
    while True:
        for factor in (1, 2, 5):
            if factor * scale >= width:
                return factor * scale
        scale *= 10
