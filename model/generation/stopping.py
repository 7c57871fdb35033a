"""Turns the bytes of an answer, token by token, into the first stop string that it comes to hold.

Works on bytes, so that a string is found wherever token boundaries fall, inside a letter too. It
does not know tokens: their bytes come from the tokenizer.
"""

from collections.abc import Sequence


class StopFinder:
    """Watches one answer. strings: none of them empty.

    Only what the answer itself says counts: the reference also sees a string that begins in the
    prompt.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [(string, string.encode("utf-8", "surrogatepass")) for string in strings]
        # Bytes of the past in which a string that is not complete yet may have begun.
        self._reach = max((len(one) for _, one in self._strings), default=1) - 1
        self._tail = b""

    def add(self, piece: bytes) -> str | None:
        """The stop string that the answer holds now that `piece` follows, or None.

        Of several the one that begins first, and of those the longest. The work is bounded by the
        lengths of the strings and of the piece, however long the answer.
        """
        window = self._tail + piece
        self._tail = window[-self._reach :] if self._reach else b""
        found = [
            (start, -len(one), string)
            for string, one in self._strings
            if (start := window.find(one)) >= 0
        ]
        return min(found)[2] if found else None


def before_stop(text: str, strings: Sequence[str]) -> str:
    """The text up to the stop string that begins first in it; all of it if it holds none."""
    starts = [start for string in strings if string and (start := text.find(string)) >= 0]
    return text[: min(starts)] if starts else text
