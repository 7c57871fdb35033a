"""Turns what the stages have done into counts, a rate, an estimate of the end, and Ray's metrics.

Counts are for the eye: a retried task counts twice. The truth about finished rows is the ledger's.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

_WINDOW_S = 30.0  # of the recent rate
_SAMPLE_S = 2.0  # Ray sends what it was told last every 10 s

# Ray puts `ray_` before the names. Each metric has the tag `run`, and the one that is named here.
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


class Metrics:
    """Named counters, to be held by an actor: stages add to them and do not wait."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str, number: int) -> None:
        self._counts[name] += number

    def add_all(self, numbers: Mapping[str, int]) -> None:
        self._counts.update(numbers)

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


class Exported:
    """The counters of one run that Ray exports. It is told totals, and adds what they have grown.

    begun: totals that are not to be added, since another process has done that.
    """

    def __init__(self, run: str, begun: Totals) -> None:
        from ray.util.metrics import Counter as RayCounter

        self._run, self._told = run, dict(begun)
        self._counters = {
            name: RayCounter(name, says, (_RUN, tag) if tag else (_RUN,))
            for name, (tag, says) in _COUNTERS.items()
        }

    def update(self, totals: Totals) -> None:
        """Adds what is more than at the last call."""
        for (name, value), total in totals.items():
            more = total - self._told.get((name, value), 0)
            if more > 0:
                tag, _ = _COUNTERS[name]
                own = {tag: value} if tag else {}
                self._counters[name].inc(more, {_RUN: self._run, **own})
                self._told[name, value] = total


def export_engine_rows(rows: Callable[[], int], run: str) -> None:
    """Exports, for the rest of this process, how many rows its engine works on now."""
    from ray.util.metrics import Gauge

    gauge = Gauge(ENGINE_ROWS, "rows that an engine works on now", (_RUN,))

    def sample() -> None:
        while True:
            gauge.set(rows(), {_RUN: run})
            time.sleep(_SAMPLE_S)

    threading.Thread(target=sample, daemon=True, name="engine rows").start()
