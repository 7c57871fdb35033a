"""Counts what a source leaves out, with the reason and the first example of each."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mediamill.model.urls import redact_text

_EXAMPLE_CHARACTERS = 200


@dataclass
class LeftOut:
    """Threads may share it. reasons: the count and the first example of each reason."""

    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Counts `count` things; `example` is one of them."""
        with self._lock:
            before, first = self.reasons.get(reason, (0, example))
            self.reasons[reason] = (before + count, _shown(first))

    def update(self, entries: Iterable[tuple[str, int, str]]) -> None:
        """Adds what `entries` yields."""
        for reason, count, example in entries:
            self.add(reason, example, count)

    def entries(self) -> Iterator[tuple[str, int, str]]:
        """Yields each reason with its count and example, the most frequent first."""
        items = sorted(self.reasons.items(), key=lambda item: (-item[1][0], item[0]))
        yield from ((reason, count, example) for reason, (count, example) in items)

    def lines(self) -> list[str]:
        """Returns a sentence for each reason."""
        return [
            f"left out {count:,}: {reason} ({'first' if count > 1 else 'namely'}: {example})"
            for reason, count, example in self.entries()
        ]


def _shown(text: str) -> str:
    plain = redact_text(text.encode("utf-8", "backslashreplace").decode())
    plain = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in plain)
    return plain if len(plain) <= _EXAMPLE_CHARACTERS else f"{plain[:_EXAMPLE_CHARACTERS]}..."
