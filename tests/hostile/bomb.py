"""One hostile file and the expected outcome of its decoding."""

from collections.abc import Callable
from dataclasses import dataclass

CODES = ("decode_corrupt", "decode_unsupported", "decode_too_large", "media_empty")


@dataclass(frozen=True)
class Bomb:
    """A hostile file.

    build: makes the file. expected: the outcome, or a set of allowed ones.
    kind, start_s, end_s: as for Processor.prepare_media.
    pixels: of a large picture within the limits. slow: it takes seconds to make.
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
        """The allowed outcomes."""
        return {self.expected} if isinstance(self.expected, str) else self.expected
