"""One hostile file and what has to come of it."""

from collections.abc import Callable
from dataclasses import dataclass

CODES = ("decode_corrupt", "decode_unsupported", "decode_too_large", "media_empty")


@dataclass(frozen=True)
class Bomb:
    """build: makes the file. expected: the outcome, or all that are right. kind: asked for as.

    pixels: of a picture that is large and allowed. slow: takes seconds to make.
    """

    build: Callable[[], bytes]
    expected: str | set[str]
    kind: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    pixels: int = 0
    slow: bool = False

    @property
    def outcomes(self) -> set[str]:
        """Those that are right."""
        return {self.expected} if isinstance(self.expected, str) else self.expected
