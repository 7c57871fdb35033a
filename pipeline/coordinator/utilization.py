"""Turns the times of calls into how busy each pool is, and into the stage that the others wait for.

A process tells the desk now and then for how long it had work, and for how long it could have had.
What a call does is not known here.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE

_TELL_S, _LONGEST_S = 2.0, 16.0  # first, and later: the desk hears of thousands of processes
_BINDS = 0.5  # a stage that is busy for less holds nobody up
BUSY, UP = "_busy_ms", "_up_ms"  # after the name of the pool: counters of the desk
# Until a row was prepared last, and from then until one was generated last: of the desk as well.
ACTIVE, SILENT = "preparing_ms", "prepared_all_ms"


class UtilizationMeter:
    """Of one process. calls: so many at once keep it busy; fewer do in part.

    tell: given milliseconds, of work and of all the time in between.
    """

    def __init__(
        self,
        calls: int,
        tell: Callable[[int, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls, self._tell, self._clock = calls, tell, clock
        self._pause_s = _TELL_S
        self._lock = threading.Lock()
        self._inside = 0
        self._worked_s = 0.0
        self._changed = self._told = clock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a call is under way."""
        self._step(1)
        try:
            yield
        finally:
            self._step(-1)

    def _step(self, change: int) -> None:
        with self._lock:
            now = self._clock()
            self._worked_s += (now - self._changed) * min(1.0, self._inside / self._calls)
            self._changed = now
            self._inside += change
            if now - self._told < self._pause_s:
                return
            self._pause_s = min(2 * self._pause_s, _LONGEST_S)
            worked, up = self._worked_s, now - self._told
            self._worked_s, self._told = 0.0, now
        self._tell(round(1000 * worked), round(1000 * up))


def shares(counted: Mapping[str, int]) -> dict[str, float]:
    """By pool: the part of its processes' time that they had work for; from the desk's counters."""
    found = {
        pool: min(1.0, counted.get(pool + BUSY, 0) / counted[pool + UP])
        for pool in (PREPARE, GENERATE)
        if counted.get(pool + UP)
    }
    if PREPARE in found and (active := counted.get(ACTIVE, 0)):
        # Whoever has prepared all that there is tells nothing any more, and holds nobody up.
        found[PREPARE] *= active / (active + counted.get(SILENT, 0))
    return found


def binds(busy: Mapping[str, float]) -> str | None:
    """The stage that more of would make the job faster; None if it is neither of the pools."""
    pool = max(busy, key=lambda name: (busy[name], name == GENERATE), default=None)
    return pool if pool is not None and busy[pool] >= _BINDS else None
