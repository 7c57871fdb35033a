"""Measures where the processes of a run spend their time, and names the bottleneck.

Each worker reports from time to time how long it was busy, and with what. The coordinator sums
these times by pool.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE
from mediamill.schemas import progress as p

Item = TypeVar("Item")

# The interval of reports doubles: thousands of workers report to one coordinator.
_REPORT_S, _MAX_REPORT_S = 2.0, 16.0
_BOTTLENECK = 0.5  # a pool with a lower utilization does not slow down the other one
BUSY, UP = "_busy_ms", "_up_ms"  # counters of the coordinator, after the name of the pool
# Counters of the coordinator: the time until the last row was prepared, and from then until the
# last one was generated.
ACTIVE, FINISHED = "preparing_ms", "prepared_all_ms"
# Counters of the coordinator: the time that calls of workers spent in a part of their work, the
# time of the engines' steps, and that of the write tasks.
FETCH_MS, DECODE_MS, CALL_MS = "fetch_ms", "decode_ms", "call_ms"
STEP_MS, WRITE_MS = "step_ms", "write_ms"


class CallTimes:
    """Sums the time that the calls of one process spend in each part of their work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._seconds = defaultdict[str, float](float)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Adds the time of the block to the counter `name`."""
        started = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - started)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] += seconds

    def waits(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items, and adds the time that each is waited for to the counter `name`."""
        iterator = iter(items)
        while True:
            with self.measured(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def take(self) -> dict[str, int]:
        """Returns the milliseconds since the last call, by counter."""
        with self._lock:
            taken = {name: int(1000 * seconds) for name, seconds in self._seconds.items()}
            for name, milliseconds in taken.items():
                self._seconds[name] -= milliseconds / 1000
        return taken


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


def stage_shares(counters: Mapping[str, int], seconds: float = 0.0) -> dict[str, float]:
    """Returns for each part of the work the share of its processes' time that it took, in 0..1.

    Fetch (the time that calls wait for it), decode and prepare add up to the utilization of the
    workers. A part that was not measured is left out.
    counters: the coordinator's, or their increase within some time. seconds: that time.
    """
    pools = pool_utilization(counters)
    shares: dict[str, float] = {}
    calls = counters.get(CALL_MS, 0)
    if PREPARE in pools and calls > 0:
        fetch = min(1.0, counters.get(FETCH_MS, 0) / calls)
        decode = min(1.0 - fetch, counters.get(DECODE_MS, 0) / calls)
        parts = {p.FETCH: fetch, p.DECODE: decode, p.PREPARE: 1.0 - fetch - decode}
        shares |= {name: share * pools[PREPARE] for name, share in parts.items()}
    elif PREPARE in pools:
        shares[p.PREPARE] = pools[PREPARE]
    if engine_up := counters.get(GENERATE + UP):
        shares[p.ENGINE] = min(1.0, counters.get(STEP_MS, 0) / engine_up)
    if seconds > 0 and counters.get(WRITE_MS):
        shares[p.WRITE] = min(1.0, counters[WRITE_MS] / (1000 * seconds))
    return shares


def bound_by(binds: str | None, shares: Mapping[str, float]) -> str | None:
    """Returns the part of the work that limits the rate. binds: the pool that does."""
    if binds == GENERATE:
        return p.ENGINE
    if binds == PREPARE:
        return max((p.FETCH, p.DECODE, p.PREPARE), key=lambda name: shares.get(name, 0.0))
    return None


def engine_rate(counters: Mapping[str, int], rows: int) -> float | None:
    """Returns the rows a second of one engine while it works; None while that is not known."""
    seconds = counters.get(STEP_MS, 0) / 1000
    return rows / seconds if seconds > 0 and rows > 0 else None
