"""Exports a run's metrics to Ray, and estimates its rate and remaining time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

_WINDOW_S = 30.0  # of the recent rate
_SAMPLE_S = 2.0  # Ray exports the last value every 10 s

# Ray prefixes the names with `ray_`. Each metric has the tag `run`, and the tag that is named here.
ROWS, ERROR_ROWS = "mediamill_rows_total", "mediamill_error_rows_total"
TOKENS, ENGINES = "mediamill_tokens_total", "mediamill_replaced_engines_total"
ENGINE_ROWS = "mediamill_engine_rows"
_RUN = "run"
_COUNTERS: dict[str, tuple[str | None, str]] = {
    ROWS: ("stage", "rows that left a stage: prepare, generate, write"),
    ERROR_ROWS: ("code", "finished rows that are errors"),
    TOKENS: ("kind", "of finished rows: prompt (visual ones included), visual, output"),
    ENGINES: (None, "engines that broke, and were loaded anew"),
}
EXPORTED = (*_COUNTERS, ENGINE_ROWS)

Totals = Mapping[tuple[str, str], int]  # by name of the metric and value of its own tag


class Rate:
    """Rows per second over the last 30 seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def update(self, seconds: float, rows: float) -> float:
        """Returns the rate. rows: done until now. seconds: since the start."""
        if rows == 0:
            self._samples.clear()  # the time to load the model is not part of the rate
        self._samples.append((seconds, rows))
        while len(self._samples) > 2 and seconds - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0


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


def export_engine_rows(rows: Callable[[], int], run: str) -> None:
    """Exports the number of rows in this process's engine, from a thread that never ends."""
    from ray.util.metrics import Gauge

    gauge = Gauge(ENGINE_ROWS, "rows that an engine works on now", (_RUN,))

    def sample() -> None:
        while True:
            gauge.set(rows(), {_RUN: run})
            time.sleep(_SAMPLE_S)

    threading.Thread(target=sample, daemon=True, name="engine rows").start()
