"""Finds stop strings in an output, token by token.

It searches the bytes of the tokens, so that token boundaries do not matter, even inside a letter.
"""

from collections.abc import Sequence


class StopFinder:
    """Finds the first stop string of one output.

    Only the output is searched; the reference also finds a string that begins in the prompt.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """strings: none of them empty."""
        self._strings = [(string, string.encode("utf-8", "surrogatepass")) for string in strings]
        # The number of trailing bytes in which an incomplete stop string may have begun.
        self._tail_bytes = max((len(encoded) for _, encoded in self._strings), default=1) - 1
        self._tail = b""

    def add(self, token_bytes: bytes) -> str | None:
        """Appends the bytes of a token; returns the stop string that the output now holds, or None.

        Of several it returns the one that begins first, and of those the longest. The work does not
        grow with the length of the output.
        """
        window = self._tail + token_bytes
        self._tail = window[-self._tail_bytes :] if self._tail_bytes else b""
        matches = [
            (start, -len(encoded), string)
            for string, encoded in self._strings
            if (start := window.find(encoded)) >= 0
        ]
        return min(matches)[2] if matches else None


def before_stop(text: str, strings: Sequence[str]) -> str:
    """Returns the text before the first stop string in it; all of it if there is none."""
    starts = [start for string in strings if string and (start := text.find(string)) >= 0]
    return text[: min(starts)] if starts else text
