"""Decides from the failures that workers report whether the run goes on.

Counts failed rows by error code, broken engines and failed loads. The coordinator inherits it.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mediamill.model.urls import safe_text
from mediamill.pipeline.coordinator.load_failures import LoadFailure, LoadFailures
from mediamill.pipeline.coordinator.quarantine import Admission, Ordinal, Quarantine, WorkerId
from mediamill.schemas.job import Limits, Resources

_MAX_PAUSE_S = 60.0

PREPARE, GENERATE = "prepare", "generate"  # the pools

# What can help after a stop: the same command again, the same command once something around the job
# was mended, or only another job.
Remedy = Literal["again", "mend", "job"]


@dataclass(frozen=True)
class RunStatus:
    """What the driver polls.

    stop_reason: a sentence; None if the run may go on.
    abort: whether it must stop at once, since results in flight cannot be trusted.
    draining: whether workers must begin no more rows.
    engines_replaced: engines that broke so far.
    remedy: what can help after the stop.
    begun: whether a process of the last pool has begun rows, so that some may be finished soon.
    finished_rows: in this run. process: of the coordinator; another one after each restart.
    """

    stop_reason: str | None
    abort: bool
    draining: bool
    engines_replaced: int
    remedy: Remedy = "again"
    begun: bool = False
    finished_rows: int = 0
    process: str = ""


class FailurePolicy:
    """Tracks the rows in flight and the failures of this run.

    A restarted coordinator is told what was committed and how many engines broke (`carry`). The
    tries to load and the suspects begin anew: both are bounded again.

    resources, limits: of the job; they hold max_engine_failures, max_error_rate, error_rate_rows.
    is_alive: whether a node, by its id, is still in the cluster.
    last_pool: the pool whose rows count for the error rate.
    """

    def __init__(
        self,
        resources: Resources,
        limits: Limits,
        is_alive: Callable[[str], bool],
        last_pool: str = GENERATE,
    ) -> None:
        self._last_pool = last_pool
        self._max_engine_failures, self._limits = resources.max_engine_failures, limits
        self._quarantine = Quarantine(is_alive)
        self._finished_rows = 0
        self._errors: Counter[str] = Counter()
        self._loads = LoadFailures(is_alive)
        self._broken_engines = self._carried_engines = 0
        self._draining = self._abort = self._begun = False
        self._stop_reason: str | None = None
        self._remedy: Remedy = "again"
        self._process = uuid.uuid4().hex

    def carry(self, broken_engines: int) -> None:
        """Takes over the count of a coordinator before this one."""
        self._carried_engines = max(self._carried_engines, broken_engines)

    def enter(self, worker: WorkerId) -> None:
        """Registers a process that has started."""
        self._quarantine.enter(worker)
        if failure := self._loads.enter(worker):
            self._note_failure(worker, failure, "mend")

    def loaded(self, worker: WorkerId) -> None:
        """Notes that a process is ready to work."""
        self._loads.loaded(worker)

    def load_failed(self, worker: WorkerId, error: str, is_jobs_fault: bool) -> float:
        """Notes that a process could not load its stage.

        is_jobs_fault: whether the error says that the job can never work.
        Returns how many seconds the process must wait before it ends, and is started again.
        """
        failure = self._loads.failed(worker, error)
        self._note_failure(worker, failure, "job" if is_jobs_fault else "mend")
        # Its end would only start another one while the run stops.
        return _MAX_PAUSE_S if self._draining else min(2.0 ** (failure.tries - 1), _MAX_PAUSE_S)

    def _note_failure(self, worker: WorkerId, failure: LoadFailure, remedy: Remedy) -> None:
        if failure.hopeless:
            name = "an engine" if worker.pool == GENERATE else "a process that prepares rows"
            times = f"{failure.tries} times in a row"
            self._stop(f"{name} could not be loaded {times}: {failure.error}", remedy)
            self._abort = True  # nothing in flight can be finished

    def begin(self, worker: WorkerId, rows: Sequence[Ordinal]) -> Admission:
        """Decides how a process must run the rows of a call."""
        self._loads.loaded(worker)  # the coordinator may have been restarted since
        if self._draining:
            return Admission(stop=True)
        self._begun = self._begun or worker.pool == self._last_pool
        return self._quarantine.begin(worker, rows)

    def begin_isolated(self, worker: WorkerId, rows: Sequence[Ordinal]) -> None:
        """Marks rows as in flight, with nothing else in the process."""
        self._quarantine.begin_isolated(worker, rows)

    def done(self, worker: WorkerId, rows: Sequence[Ordinal], errors: Mapping[str, int]) -> None:
        """Marks rows as finished. errors: the number of error rows among them, by code."""
        self._quarantine.done(worker, rows)
        if worker.pool != self._last_pool:
            return
        self._finished_rows += len(rows)
        self._errors.update(errors)
        max_rate = self._limits.max_error_rate
        if max_rate is None or self._finished_rows < self._limits.error_rate_rows:
            return
        error_rows = self._errors.total()
        if error_rows > max_rate * self._finished_rows:
            codes = ", ".join(f"{code} {number}" for code, number in self._errors.most_common())
            self._stop(
                f"too many rows are errors: found {error_rows} of {self._finished_rows} in this "
                f"run ({codes}), expected at most {100 * max_rate:g} %; finished rows are kept: "
                "fix the cause, or raise limits.max_error_rate",
                "mend",
            )

    def check_answers(self, reason: str | None) -> None:
        """Drains the run if there is a reason: its answers are bad."""
        if reason is not None:
            self._stop(reason, "mend")

    def engine_broken(self, reason: str) -> None:
        """Notes that an engine cannot go on. Its process ends, and Ray starts another one."""
        self._broken_engines += 1
        broken = self._carried_engines + self._broken_engines
        if broken > self._max_engine_failures:
            self._stop(
                f"engines broke {broken} times in this run, expected at most "
                f"{self._max_engine_failures} (resources.max_engine_failures); the last time: "
                f"{reason}"
            )

    def fatal(self, reason: str) -> None:
        """Ends the run at once: no further answer can be trusted."""
        self._stop(reason, "mend")
        self._abort = True

    def drain(self) -> None:
        """Lets workers finish the rows in flight and begin no others."""
        self._draining = True

    def status(self) -> RunStatus:
        """Returns the run status."""
        broken = self._carried_engines + self._broken_engines
        return RunStatus(
            self._stop_reason,
            self._abort,
            self._draining,
            broken,
            self._remedy,
            self._begun,
            self._finished_rows,
            self._process,
        )

    def _stop(self, reason: str, remedy: Remedy = "again") -> None:
        """Drains the run. The first reason is the one that is reported."""
        if self._stop_reason is None:
            self._stop_reason, self._remedy = safe_text(reason), remedy
        self._draining = True
