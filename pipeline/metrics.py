"""Counts what the stages have done, and turns the counts into a rate and an estimate of the end.

Counts are for the eye: a retried task counts twice. The truth about finished rows is the ledger's.
"""

from collections import Counter, deque

_WINDOW_S = 30.0  # of the recent rate


class Metrics:
    """Named counters, to be held by an actor: stages add to them and do not wait."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str, number: int) -> None:
        self._counts[name] += number

    def counted(self) -> dict[str, int]:
        return dict(self._counts)


class Rate:
    """Rows per second over the last seconds, and the seconds that are left."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def update(self, seconds: float, rows: float) -> float:
        """The rate, after `rows` were done `seconds` after the start."""
        if rows == 0:
            self._seen.clear()  # loading the model says nothing of the rate
        self._seen.append((seconds, rows))
        while len(self._seen) > 2 and seconds - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        (then, before), (now, after) = self._seen[0], self._seen[-1]
        return (after - before) / (now - then) if now > then else 0.0


def eta_s(rows_left: float, rate: float) -> float | None:
    """None while there is no rate."""
    return rows_left / rate if rate > 0 else None
