"""Finds outputs that end in a loop: the same tokens again and again.

An output loops when its last MIN_TOKENS tokens or more repeat with one period of at most MAX_PERIOD
tokens, and hold that period at least REPEATS times. What a person writes on purpose (a line of a
table, a list of equal numbers, a refrain) is shorter or repeats less often.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

MIN_TOKENS, MAX_PERIOD, REPEATS = 64, 128, 3


class LoopFinder:
    """Follows one output, token by token. The work does not grow with the length of the output."""

    def __init__(self) -> None:
        self._tokens: npt.NDArray[np.int64] = np.full(2 * MAX_PERIOD, -1, np.int64)
        self._end = MAX_PERIOD
        # By period, from 1: how many of the last tokens in a row equal the one a period before.
        self._matches: npt.NDArray[np.int64] = np.zeros(MAX_PERIOD, np.int64)
        self._periods: npt.NDArray[np.int64] = np.arange(1, MAX_PERIOD + 1)
        self._needed = np.maximum(MIN_TOKENS - self._periods, (REPEATS - 1) * self._periods)

    def add(self, token: int) -> bool:
        """Appends a token; returns whether the output loops now."""
        if self._end == len(self._tokens):
            self._tokens[:MAX_PERIOD] = self._tokens[MAX_PERIOD:]
            self._end = MAX_PERIOD
        previous = self._tokens[self._end - MAX_PERIOD : self._end][::-1]
        self._matches += 1
        self._matches *= previous == token
        self._tokens[self._end] = token
        self._end += 1
        return bool((self._matches >= self._needed).any())


def loop_start(items: Sequence[Hashable], min_items: int = MIN_TOKENS) -> int | None:
    """Returns where the loop begins in which the items end; None if they do not end in one.

    items: tokens, or the words of a text. min_items: the least length of a loop.
    """
    numbers = {item: number for number, item in enumerate(dict.fromkeys(items))}
    values = np.array([numbers[item] for item in items], np.int64)
    longest = min(MAX_PERIOD, len(values) // REPEATS)
    if len(values) < min_items or not longest:
        return None
    # Only a distance at which the last item occurs before can be a period.
    distances: list[int] = np.flatnonzero(values[-longest - 1 : -1][::-1] == values[-1]).tolist()
    for period in (distance + 1 for distance in distances):
        differs = np.flatnonzero(values[period:] != values[:-period])
        start = int(differs[-1]) + 1 if len(differs) else 0
        if len(values) - start >= max(min_items, REPEATS * period):
            return start
    return None
