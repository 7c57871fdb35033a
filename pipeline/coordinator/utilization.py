"""Measures the utilization of each actor pool, and names the bottleneck.

Each worker reports from time to time how long it was busy and how much time has passed. The
coordinator sums these times by pool.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE

# The interval of reports doubles: thousands of workers report to one coordinator.
_REPORT_S, _MAX_REPORT_S = 2.0, 16.0
_BOTTLENECK = 0.5  # a pool with a lower utilization does not slow down the other one
BUSY, UP = "_busy_ms", "_up_ms"  # counters of the coordinator, after the name of the pool
# Counters of the coordinator: the time until the last row was prepared, and from then until the
# last one was generated.
ACTIVE, FINISHED = "preparing_ms", "prepared_all_ms"


class UtilizationMeter:
    """Measures one process.

    calls: concurrent calls that keep the process fully busy; fewer count in proportion.
    report: called with the busy and the elapsed milliseconds since the previous report.
    """

    def __init__(
        self,
        calls: int,
        report: Callable[[int, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls, self._report, self._clock = calls, report, clock
        self._interval_s = _REPORT_S
        self._lock = threading.Lock()
        self._running = 0
        self._busy_s = 0.0
        self._changed = self._reported = clock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Measures one call."""
        self._update(1)
        try:
            yield
        finally:
            self._update(-1)

    def _update(self, change: int) -> None:
        with self._lock:
            now = self._clock()
            self._busy_s += (now - self._changed) * min(1.0, self._running / self._calls)
            self._changed = now
            self._running += change
            if now - self._reported < self._interval_s:
                return
            self._interval_s = min(2 * self._interval_s, _MAX_REPORT_S)
            busy, elapsed = self._busy_s, now - self._reported
            self._busy_s, self._reported = 0.0, now
        self._report(round(1000 * busy), round(1000 * elapsed))


def pool_utilization(counters: Mapping[str, int]) -> dict[str, float]:
    """Returns by pool the fraction of its workers' time that they were busy, in 0..1.

    counters: the coordinator's. A pool that has not reported yet is left out.
    """
    utilization = {
        pool: min(1.0, counters.get(pool + BUSY, 0) / counters[pool + UP])
        for pool in (PREPARE, GENERATE)
        if counters.get(pool + UP)
    }
    if PREPARE in utilization and (active := counters.get(ACTIVE, 0)):
        # After the last row is prepared this pool stops reporting; scale by its active time.
        utilization[PREPARE] *= active / (active + counters.get(FINISHED, 0))
    return utilization


def bottleneck(utilization: Mapping[str, float]) -> str | None:
    """Returns the pool that limits the rate of the job; None if neither does."""
    busy = [pool for pool in utilization if utilization[pool] >= _BOTTLENECK]
    return max(busy, key=lambda pool: (utilization[pool], pool == GENERATE), default=None)
