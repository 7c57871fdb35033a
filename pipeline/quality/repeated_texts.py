"""Counts texts that many rows share, in bounded memory.

Misra and Gries, "Finding repeated elements" (1982): of any stream, the counters hold every text
that more than one of CAPACITY rows has, and each count is too small by at most rows / CAPACITY.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

CAPACITY = 1024
_EXAMPLE = 160  # letters of a text that are kept as its example


def text_key(text: str) -> str:
    """Returns the same key for near-identical texts: letter case, digits, punctuation and spaces do
    not count.
    """
    words = " ".join(re.findall(r"[^\W\d_]+", text.casefold()))
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class RepeatedTexts:
    """The counters of one stream, or of several that are merged."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def add(self, texts: Iterable[str]) -> None:
        """Counts the texts of rows."""
        for text in texts:
            key = text_key(text)
            self._add(key, 1, text[:_EXAMPLE])

    def merge(self, counts: Mapping[str, int], examples: Mapping[str, str]) -> None:
        """Adds the counters of another stream, as `counters` returns them."""
        for key, count in counts.items():
            self._add(key, count, examples[key])

    def counters(self) -> tuple[dict[str, int], dict[str, str]]:
        """Returns the counts and an example of each text, by key."""
        return dict(self._counts), dict(self._examples)

    def most_common(self) -> tuple[str, int] | None:
        """Returns an example of the commonest text and its count, at least; None without texts."""
        if not self._counts:
            return None
        key = max(self._counts, key=self._counts.__getitem__)
        return self._examples[key], self._counts[key]

    def _add(self, key: str, count: int, example: str) -> None:
        if key in self._counts or len(self._counts) < CAPACITY:
            self._counts[key] = self._counts.get(key, 0) + count
            self._examples.setdefault(key, example)
            return
        least = min(count, min(self._counts.values()))
        for other in [*self._counts]:
            self._counts[other] -= least
            if not self._counts[other]:
                del self._counts[other], self._examples[other]
        if count > least:
            self._add(key, count - least, example)
