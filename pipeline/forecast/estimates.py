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
_MAX_STRATA = 12
_MIN_STRATUM = 4  # rows of a stratum that is halved
_MIN_REGRESSION = 12  # measured rows of a stratum
_PRIOR_ROWS = 4  # that all strata's deviation counts for in each of them


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

    def product(self, other: "Estimate") -> "Estimate":
        """Returns the product with another, whose error may be the same."""
        return Estimate(self.value * other.value, self.low * other.low, self.high * other.high)

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

    The stratum that varies most is halved at its mean, again and again: few large rows among many
    small ones are one of their own.
    """
    known = np.isfinite(sizes)
    strata = np.zeros(len(sizes), np.int64)
    strata[~known] = _MAX_STRATA
    # Tokens grow more slowly than bytes, up to a limit.
    roots = np.sqrt(np.maximum(sizes[known], 0.0))
    numbers = np.zeros(roots.size, np.int64)
    for new in range(1, _MAX_STRATA):
        parts = [numbers == number for number in range(new)]
        spreads = [float(roots[part].std()) * part.sum() for part in parts]
        widest = int(np.argmax(spreads))
        if not spreads[widest] or parts[widest].sum() < _MIN_STRATUM:
            break
        numbers[parts[widest] & (roots > roots[parts[widest]].mean())] = new
    strata[known] = numbers
    return strata


def estimate(frame: Frame, rows: npt.NDArray[np.int64], values: Floats, cheap: str) -> Estimate:
    """Returns the total of a value over all rows to do.

    rows: positions in the frame of the measured rows. values: of each of them.
    cheap: the name of the cheap value that the value may depend on.
    """
    known = frame.cheap[cheap]
    fitted = np.zeros(frame.rows)
    measured_strata = frame.stratum[rows]
    overall = float(values.mean()) if values.size else 0.0
    spread = float(values.std(ddof=1)) if values.size > 1 else overall
    fits: list[tuple[int, int, float, float]] = []  # rows, measured rows, mean, residual
    for number in frame.strata:
        in_frame, mine = frame.stratum == number, measured_strata == number
        count, held = int(mine.sum()), int(in_frame.sum())
        if count:
            fitted[in_frame], residual = _fit(known[rows[mine]], values[mine], known[in_frame])
            fits.append((held, count, float(values[mine].mean()), residual))
        else:
            fitted[in_frame] = overall
            fits.append((held, 0, overall, spread))
    typical = _typical([(count, mean, residual) for _, count, mean, residual in fits])
    grown = frame.population / frame.rows  # rows to do for one of the frame
    variance = sum(
        (held / frame.rows) ** 2
        * (1 - count / (held * grown))
        * _shrunk(residual, mean, count, typical) ** 2
        / max(1, count)
        for held, count, mean, residual in fits
    )
    mean = float(fitted.mean())
    shown = fitted.copy()
    shown[rows] = values
    variance += _first_phase(frame, fitted, shown)
    return Estimate.of(frame.population * mean, frame.population * math.sqrt(variance))


def _typical(strata: Sequence[tuple[int, float, float]]) -> float:
    """Returns the relative deviation within strata; each is (measured rows, mean, deviation)."""
    above = sum((count - 1) * deviation**2 for count, _, deviation in strata if count > 1)
    below = sum((count - 1) * mean**2 for count, mean, _ in strata if count > 1)
    return math.sqrt(above / below) if below else 1.0


def _shrunk(deviation: float, mean: float, count: int, typical: float) -> float:
    """Returns the deviation within a stratum, drawn towards that of all strata while rows are few:
    those that happen to be alike would end the sampling of their stratum too early.
    """
    if not count:
        return deviation
    freedom = count - 1
    square = freedom * deviation**2 + _PRIOR_ROWS * (typical * mean) ** 2
    return math.sqrt(square / (freedom + _PRIOR_ROWS))


def _deviation(sample: Floats) -> float:
    return float(sample.std(ddof=1)) if sample.size > 1 else 0.0


def _fit(x: Floats, y: Floats, all_x: Floats) -> tuple[Floats, float]:
    """Returns what each row of a stratum is expected to have, and the deviation from that."""
    mean = float(y.mean())
    plain = _deviation(y)
    if y.size < _MIN_REGRESSION or not np.isfinite(all_x).all() or np.ptp(x) == 0 or plain == 0:
        return np.full(all_x.size, mean), plain
    slope = float(np.cov(x, y)[0, 1] / x.var(ddof=1))
    residuals = y - mean - slope * (x - x.mean())
    residual = math.sqrt(float((residuals**2).sum()) / (y.size - 2))
    if residual > 0.9 * plain:
        return np.full(all_x.size, mean), plain
    return mean + slope * (all_x - x.mean()), residual


def _first_phase(frame: Frame, fitted: Floats, shown: Floats) -> float:
    """Returns the variance of the mean that comes from the frame being a sample itself.

    shown: as `fitted`, with the values of the rows that were measured.
    """
    if frame.is_complete or frame.rows < 2:
        return 0.0
    rest = 1 - frame.rows / frame.population
    alone = float(fitted.var(ddof=1)) / frame.rows
    if frame.clusters is None:
        return rest * alone
    numbers, places = np.unique(frame.clusters, return_inverse=True)
    if numbers.size < 2:
        return rest * alone
    means = np.bincount(places, shown) / np.bincount(places)
    return max(rest * alone, float(means.var(ddof=1)) / numbers.size)


def allocate(
    frame: Frame, rows: npt.NDArray[np.int64], values: Floats, left: Mapping[int, int], count: int
) -> dict[int, int]:
    """Returns how many rows of each stratum to measure next, about `count` together.

    left: rows of each stratum that are not measured yet. A stratum gets as much as it adds to the
    error of the total (Neyman's allocation).
    """
    measured = frame.stratum[rows]
    own = {number: values[measured == number] for number in frame.strata}
    spreads = {number: _deviation(sample) for number, sample in own.items()}
    overall = float(values.mean()) if values.size else 1.0
    means = {number: float(one.mean()) if one.size else overall for number, one in own.items()}
    typical = _typical([(one.size, means[number], spreads[number]) for number, one in own.items()])
    needs: dict[int, float] = {}
    for number, free in left.items():
        size = own[number].size
        spread = _shrunk(spreads[number], means[number], size, typical) if size else overall
        # A stratum of equal values so far may have others: it is not left out.
        spread = max(spread, 0.02 * overall)
        held = int((frame.stratum == number).sum())
        needs[number] = held * spread / math.sqrt(max(size, 1)) if free else 0.0
    whole = sum(needs.values())
    if not whole:
        return {}
    return {
        number: min(left[number], max(1, round(count * need / whole)))
        for number, need in needs.items()
        if need
    }
