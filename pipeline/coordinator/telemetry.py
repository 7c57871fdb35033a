"""What a run's processes tell the coordinator of themselves, beside rows and failures."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mediamill.pipeline.coordinator import utilization
from mediamill.pipeline.coordinator.load_failures import LoadFailures
from mediamill.schemas.progress import Engines, ErrorExample

_WINDOW_S = 60.0  # of the recent shares; processes report every 16 s at most
_SAMPLE_S = 2.0
_SILENT_S = 90.0  # an engine that has not reported for so long is gone


@dataclass(frozen=True)
class EngineReport:
    """The occupancy of one engine. pages: of its KV cache, 0 before the first request."""

    running: int
    waiting: int
    pages: int
    pages_in_use: int


@dataclass(frozen=True)
class Telemetry:
    """A view of the run's processes. loading, loaded, lost: processes by pool."""

    examples: Mapping[str, ErrorExample] = field(default_factory=dict)
    engines: Engines = field(default_factory=Engines)
    shares: Mapping[str, float] = field(default_factory=dict)
    recent: Mapping[str, int] = field(default_factory=dict)  # increase of the counters
    loading: Mapping[str, int] = field(default_factory=dict)
    loaded: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)


class TelemetryStore:
    """Collects it in the coordinator. Its size does not depend on the number of rows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._engines: dict[str, tuple[float, EngineReport]] = {}
        self._examples: dict[str, ErrorExample] = {}
        self._samples: deque[tuple[float, Mapping[str, int]]] = deque()

    def put_engine(self, actor: str, report: EngineReport) -> None:
        """Keeps the last report of the engine of an actor."""
        self._engines[actor] = (self._clock(), report)

    def add_examples(self, examples: Mapping[str, ErrorExample]) -> None:
        """Keeps the first error row of each code."""
        for code, example in examples.items():
            self._examples.setdefault(code, example)

    def view(self, counters: Mapping[str, int], loads: LoadFailures) -> Telemetry:
        """Returns the state now. counters: the coordinator's."""
        seconds, recent = self._recent(counters)
        loading, loaded = loads.loading()
        return Telemetry(
            dict(self._examples),
            self._occupancy(),
            utilization.stage_shares(recent, seconds),
            recent,
            dict(loading),
            dict(loaded),
            dict(loads.lost),
        )

    def _occupancy(self) -> Engines:
        now = self._clock()
        self._engines = {
            actor: entry for actor, entry in self._engines.items() if now - entry[0] < _SILENT_S
        }
        reports = [report for _, report in self._engines.values()]
        pages = sum(report.pages for report in reports)
        in_use = sum(report.pages_in_use for report in reports)
        return Engines(
            sum(report.running for report in reports),
            sum(report.waiting for report in reports),
            in_use / pages if pages else None,
        )

    def _recent(self, counters: Mapping[str, int]) -> tuple[float, dict[str, int]]:
        """Returns the increase of the counters within the window, and its length in seconds."""
        now, samples = self._clock(), self._samples
        if not samples or now - samples[-1][0] >= _SAMPLE_S:
            samples.append((now, Counter(counters)))
        while len(samples) > 2 and now - samples[1][0] > _WINDOW_S:
            samples.popleft()
        start, before = samples[0]
        if len(samples) == 1:
            before = {}
        recent = {
            name: number - before.get(name, 0)
            for name, number in counters.items()
            if name not in (utilization.ACTIVE, utilization.FINISHED)
        }
        return now - start, recent
