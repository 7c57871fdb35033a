"""Counts how many rows share their text with others, in bounded memory."""

from collections.abc import Iterable

_ENTRIES = 50_000
_COMMON = 1000
_EXAMPLE = 200  # letters


class RepeatedTexts:
    """Exact up to 50,000 different texts; of more, those with some hashes stand for all."""

    def __init__(self) -> None:
        self._mask, self._total = 0, 0
        self._rows: dict[int, int] = {}
        self._common: dict[int, tuple[int, str]] = {}

    def add(self, texts: Iterable[tuple[str, int]]) -> None:
        """Takes different texts of some rows, and how many of these rows have each."""
        for text, rows in texts:
            self._total += rows
            key = hash(text)
            if not key & self._mask:
                self._rows[key] = self._rows.get(key, 0) + rows
            if rows > 1 or key in self._common:
                count, example = self._common.get(key, (0, text[:_EXAMPLE]))
                self._common[key] = (count + rows, example)
        while len(self._rows) > _ENTRIES:
            self._mask = 2 * self._mask + 1
            self._rows = {key: n for key, n in self._rows.items() if not key & self._mask}
        if len(self._common) > 2 * _COMMON:
            most = sorted(self._common.items(), key=lambda item: -item[1][0])[:_COMMON]
            self._common = dict(most)

    @property
    def is_exact(self) -> bool:
        """Whether all texts were counted."""
        return self._mask == 0

    @property
    def share(self) -> float:
        """The share of the rows whose text another row has too, 0..1."""
        if not self._total:
            return 0.0
        if self.is_exact:
            return sum(n for n in self._rows.values() if n > 1) / self._total
        # Common texts were counted all; of the rare ones, those with some hashes stand for all.
        common = sum(rows for rows, _ in self._common.values())
        rare = sum(n for key, n in self._rows.items() if n > 1 and key not in self._common)
        return min(1.0, (common + rare * (self._mask + 1)) / self._total)

    def most_common(self, count: int) -> list[tuple[str, int]]:
        """Returns the beginnings of the commonest texts, and of how many rows at least."""
        most = sorted(self._common.values(), key=lambda item: (-item[0], item[1]))[:count]
        return [(example, rows) for rows, example in most]
