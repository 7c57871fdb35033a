"""Exports a run's metrics to Ray, and estimates its rate and remaining time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

_WINDOW_S = 30.0  # of the recent rate, at least
_MIN_BURSTS, _MAX_BURSTS = 12, 512
_SAMPLE_S = 2.0  # Ray exports the last value every 10 s

# Ray prefixes the names with `ray_`. Each metric has the tag `run`, and the tag that is named here.
ROWS, ERROR_ROWS = "mediamill_rows_total", "mediamill_error_rows_total"
TOKENS, ENGINES = "mediamill_tokens_total", "mediamill_replaced_engines_total"
ENGINE_ROWS = "mediamill_engine_rows"
WAITING_ROWS, CACHE_USE = "mediamill_waiting_rows", "mediamill_cache_use"
SHARE, PROCESSES = "mediamill_share", "mediamill_processes"
_RUN = "run"
_COUNTERS: dict[str, tuple[str | None, str]] = {
    ROWS: ("stage", "rows that left a stage: prepare, generate, write"),
    ERROR_ROWS: ("code", "finished rows that are errors"),
    TOKENS: ("kind", "of finished rows: prompt (visual ones included), visual, output"),
    ENGINES: (None, "engines that broke, and were loaded anew"),
}
_GAUGES: dict[str, tuple[str | None, str]] = {
    WAITING_ROWS: (None, "rows that the engines have and that are not in their batches"),
    CACHE_USE: (None, "share of the engines' KV caches that is in use, in 0..1"),
    SHARE: ("part", "recent share of the time: fetch, decode, prepare, engine, write, in 0..1"),
    PROCESSES: ("pool", "processes that are ready to work: prepare, generate"),
}
EXPORTED = (*_COUNTERS, *_GAUGES, ENGINE_ROWS)

Totals = Mapping[tuple[str, str], int]  # by name of the metric and value of its own tag


class Rate:
    """Rows per second of the recent past: at least half a minute, and a fourth of the run.

    Rows come in bursts, since a call brings many at once, and the calls of a full engine end
    together. So the rate is that between two bursts. The first one counts from the first update,
    which must be the moment when the engines can begin.
    """

    def __init__(self) -> None:
        self._bursts: deque[tuple[float, float]] = deque()

    def update(self, seconds: float, rows: float) -> float:
        """Returns the rate. rows: done until now. seconds: since the start."""
        bursts = self._bursts
        if not bursts or rows > bursts[-1][1]:
            bursts.append((seconds, rows))
        window_s = max(_WINDOW_S, seconds / 4)
        while len(bursts) > _MIN_BURSTS and bursts[-1][0] - bursts[1][0] > window_s:
            bursts.popleft()
        if len(bursts) > _MAX_BURSTS:  # bounded memory: every second one is enough
            self._bursts = bursts = deque([*list(bursts)[:-1:2], bursts[-1]])
        (start, before), (end, after) = bursts[0], bursts[-1]
        if end <= start:
            return 0.0
        gap = (end - start) / (len(bursts) - 1)
        return (after - before) / (max(end, seconds - 2 * gap) - start)


def eta_s(rows_left: float, rate: float) -> float | None:
    """Returns the estimated remaining seconds; None while the rate is 0."""
    return rows_left / rate if rate > 0 else None


class ExportedCounters:
    """The counters of one run that Ray exports. Adds the increase of the totals it is given.

    exported: totals that another process has exported already.
    """

    def __init__(self, run: str, exported: Totals) -> None:
        from ray.util.metrics import Counter

        self._run, self._exported = run, dict(exported)
        self._counters = {
            name: Counter(name, description, (_RUN, tag) if tag else (_RUN,))
            for name, (tag, description) in _COUNTERS.items()
        }

    def update(self, totals: Totals) -> None:
        """Adds the increase since the last call."""
        for (name, value), total in totals.items():
            increase = total - self._exported.get((name, value), 0)
            if increase > 0:
                tag, _ = _COUNTERS[name]
                tags = {_RUN: self._run, **({tag: value} if tag else {})}
                self._counters[name].inc(increase, tags)
                self._exported[name, value] = total


class ExportedGauges:
    """The values of one run that Ray exports as they are now."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._run = run
        self._gauges = {
            name: Gauge(name, description, (_RUN, tag) if tag else (_RUN,))
            for name, (tag, description) in _GAUGES.items()
        }

    def set(self, values: Mapping[tuple[str, str], float]) -> None:
        """Sets the values, by name of the metric and value of its own tag."""
        for (name, value), number in values.items():
            tag, _ = _GAUGES[name]
            tags = {_RUN: self._run, **({tag: value} if tag else {})}
            self._gauges[name].set(number, tags)


def export_engine_rows(rows: Callable[[], int], run: str) -> None:
    """Exports the number of rows in this process's engine, from a thread that never ends."""
    from ray.util.metrics import Gauge

    gauge = Gauge(ENGINE_ROWS, "rows that an engine works on now", (_RUN,))

    def sample() -> None:
        while True:
            gauge.set(rows(), {_RUN: run})
            time.sleep(_SAMPLE_S)

    threading.Thread(target=sample, daemon=True, name="engine rows").start()
