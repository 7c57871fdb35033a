"""Estimates totals over many rows from a few that were measured, each with an interval.

Two-phase sampling: cheap values, such as the bytes of a file, are known of many rows (or of all),
and divide them into strata; what is costly to measure is measured of some rows of each stratum. In
a stratum the mean is corrected by a regression on a cheap value, where that helps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.9
_Z = 1.645  # of the normal distribution, for CONFIDENCE
_MAX_STRATA = 10
_MIN_REGRESSION = 6  # measured rows of a stratum


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its interval, which holds the true one in 90 of 100 cases."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        """Returns a value that is known."""
        return cls(value, value, value)

    @classmethod
    def of(cls, value: float, deviation: float) -> "Estimate":
        """Returns a value that is not negative, with its standard deviation."""
        return cls(value, max(0.0, value - _Z * deviation), value + _Z * deviation)

    @property
    def relative(self) -> float:
        """Half of the interval's width as a share of the value."""
        if self.high <= self.low:
            return 0.0
        return (self.high - self.low) / 2 / self.value if self.value else math.inf

    def times(self, factor: float) -> "Estimate":
        """Returns the estimate of so many times the value."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def with_spread(self, share: float) -> "Estimate":
        """Returns the value with a further, independent error of this share of it."""
        half = math.hypot(self.relative if self.value else 0.0, share) * self.value
        return Estimate(self.value, max(0.0, self.value - half), self.value + half)


def total(estimates: Sequence[Estimate]) -> Estimate:
    """Returns the sum of independent estimates."""
    value = sum(one.value for one in estimates)
    half = math.sqrt(sum(((one.high - one.low) / 2) ** 2 for one in estimates))
    return Estimate(value, max(0.0, value - half), value + half)


@dataclass(frozen=True)
class Frame:
    """The rows of which cheap values are known: all rows to do, or a random sample of them.

    population: rows to do. stratum: of each row of the frame.
    cheap: by name, a value of each row. clusters: which rows were drawn together; None if each was
    drawn alone.
    """

    population: int
    stratum: npt.NDArray[np.int64]
    cheap: Mapping[str, Floats]
    clusters: npt.NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        return len(self.stratum)

    @property
    def strata(self) -> list[int]:
        return [int(number) for number in np.unique(self.stratum)]

    @property
    def is_complete(self) -> bool:
        """Whether it has all rows."""
        return self.rows == self.population


def divide(sizes: Floats) -> npt.NDArray[np.int64]:
    """Returns the stratum of each row, by its size; NaN is a stratum of its own.

    All strata have about the same share of the sum, so that few large rows are one of their own.
    """
    known = np.isfinite(sizes)
    strata = np.zeros(len(sizes), np.int64)
    if known.sum() < 2 * _MAX_STRATA or np.unique(sizes[known]).size == 1:
        strata[~known] = 1
        return strata
    order = np.argsort(sizes, kind="stable")[: int(known.sum())]
    # Between equal numbers of rows and equal sums.
    weights = np.sqrt(np.maximum(sizes[order], 0.0))
    shares = np.cumsum(weights) / max(weights.sum(), 1e-9)
    numbers = np.minimum((shares * _MAX_STRATA).astype(np.int64), _MAX_STRATA - 1)
    # Equal sizes are in one stratum.
    first = np.searchsorted(sizes[order], sizes[order], side="left")
    strata[order] = numbers[first]
    strata[~known] = _MAX_STRATA
    return strata


def estimate(frame: Frame, rows: npt.NDArray[np.int64], values: Floats, cheap: str) -> Estimate:
    """Returns the total of a value over all rows to do.

    rows: positions in the frame of the measured rows. values: of each of them.
    cheap: the name of the cheap value that the value may depend on.
    """
    known = frame.cheap[cheap]
    fitted = np.zeros(frame.rows)
    variance = 0.0
    measured_strata = frame.stratum[rows]
    overall = float(values.mean()) if values.size else 0.0
    spread = float(values.std(ddof=1)) if values.size > 1 else overall
    for number in frame.strata:
        in_frame = frame.stratum == number
        mine = measured_strata == number
        count, held = int(mine.sum()), int(in_frame.sum())
        share = held / frame.rows
        if not count:
            fitted[in_frame] = overall
            variance += share**2 * spread**2
            continue
        sample = values[mine]
        predicted, residual = _fit(known[rows[mine]], sample, known[in_frame])
        fitted[in_frame] = predicted
        rest = 1 - count / held
        if count == 1:
            residual = spread
        variance += share**2 * rest * residual**2 / count
    mean = float(fitted.mean())
    variance += _first_phase(frame, fitted)
    return Estimate.of(frame.population * mean, frame.population * math.sqrt(variance))


def _fit(x: Floats, y: Floats, all_x: Floats) -> tuple[Floats, float]:
    """Returns what each row of a stratum is expected to have, and the deviation from that."""
    mean = float(y.mean())
    plain = float(y.std(ddof=1)) if y.size > 1 else 0.0
    if y.size < _MIN_REGRESSION or not np.isfinite(all_x).all() or np.ptp(x) == 0 or plain == 0:
        return np.full(all_x.size, mean), plain
    slope = float(np.cov(x, y)[0, 1] / x.var(ddof=1))
    residuals = y - mean - slope * (x - x.mean())
    residual = math.sqrt(float((residuals**2).sum()) / (y.size - 2))
    if residual > 0.9 * plain:
        return np.full(all_x.size, mean), plain
    return mean + slope * (all_x - x.mean()), residual


def _first_phase(frame: Frame, fitted: Floats) -> float:
    """Returns the variance of the mean that comes from the frame being a sample itself."""
    if frame.is_complete or frame.rows < 2:
        return 0.0
    rest = 1 - frame.rows / frame.population
    alone = float(fitted.var(ddof=1)) / frame.rows
    if frame.clusters is None:
        return rest * alone
    numbers, places = np.unique(frame.clusters, return_inverse=True)
    if numbers.size < 2:
        return rest * alone
    means = np.bincount(places, fitted) / np.bincount(places)
    return max(rest * alone, float(means.var(ddof=1)) / numbers.size)


def allocate(
    frame: Frame, rows: npt.NDArray[np.int64], values: Floats, left: Mapping[int, int], count: int
) -> dict[int, int]:
    """Returns how many rows of each stratum to measure next, about `count` together.

    left: rows of each stratum that are not measured yet. A stratum gets as much as it adds to the
    error of the total (Neyman's allocation).
    """
    measured = frame.stratum[rows]
    needs: dict[int, float] = {}
    for number, free in left.items():
        mine = values[measured == number]
        held = int((frame.stratum == number).sum())
        # A stratum of equal values so far may have others: it is not left out.
        spread = float(mine.std(ddof=1)) if mine.size > 1 else 1.0
        floor = 0.02 * float(values.mean()) if values.size else 1.0
        needs[number] = held * max(spread, floor) / math.sqrt(max(mine.size, 1)) if free else 0.0
    whole = sum(needs.values())
    if not whole:
        return {}
    return {
        number: min(left[number], max(1, round(count * need / whole)))
        for number, need in needs.items()
        if need
    }
