"""Chooses rows of a stream by their positions: random ones of each stratum, and extreme ones."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mediamill.pipeline.inspect.output import Position

_ENTRIES = 8_000  # of all strata together, about
_LEAST = 4

_Entry = tuple[float, int, int]  # priority, file, row
Numbers = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class Strata:
    """Keeps some random rows of each stratum, a number that a row's values give."""

    def __init__(self) -> None:
        self._entries: dict[int, list[_Entry]] = {}

    def add(self, strata: Numbers, priorities: Values, file: int, rows: Numbers) -> None:
        """Takes rows of a file. priorities: random; those with the least ones are kept."""
        most = max(_LEAST, _ENTRIES // (len(self._entries) + 1))
        for stratum in np.unique(strata).tolist():
            inside = np.flatnonzero(strata == stratum)
            least = _least(priorities[inside], most)
            entries = self._entries.setdefault(stratum, [])
            chosen = inside[least]
            entries += zip(
                priorities[chosen].tolist(), [file] * len(chosen), rows[chosen].tolist(),
                strict=True,
            )  # fmt: skip
            entries.sort()
            del entries[most:]

    def choose(self, count: int) -> list[Position]:
        """Returns rows of all strata in turn, as many of each as there are."""
        return [position for _, position in zip(range(count), self._in_turn(), strict=False)]

    def _in_turn(self) -> Iterator[Position]:
        turn = 0
        while left := [e for _, e in sorted(self._entries.items()) if len(e) > turn]:
            for entries in left:
                _, file, row = entries[turn]
                yield file, row
            turn += 1


class Least:
    """Keeps the rows with the least values."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._entries: list[_Entry] = []

    def add(self, values: Values, file: int, rows: Numbers) -> None:
        """Takes rows of a file; those whose value is not a number are left out."""
        for index in _least(np.where(np.isnan(values), np.inf, values), self._count).tolist():
            value = float(values[index])
            if value == value and value != float("inf"):
                self._entries.append((value, file, int(rows[index])))
        self._entries.sort()
        del self._entries[self._count :]

    @property
    def positions(self) -> list[Position]:
        """The rows, those with the least values first."""
        return [(file, row) for _, file, row in self._entries]


def _least(values: Values, count: int) -> Numbers:
    if len(values) <= count:
        return np.arange(len(values))
    return np.argpartition(values, count)[:count]
