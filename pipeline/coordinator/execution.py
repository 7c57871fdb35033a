"""Makes passes over the unfinished rows until the run has all of them, or has a reason to stop."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from mediamill.pipeline.coordinator import coordinator, utilization
from mediamill.pipeline.coordinator.advice import advice
from mediamill.pipeline.coordinator.autoscaler import Autoscaler, PoolLimits
from mediamill.pipeline.coordinator.coordinator import start_coordinator
from mediamill.pipeline.coordinator.deferred import take_deferred
from mediamill.pipeline.coordinator.drain import (
    NOTHING_BEGUN,
    DrainCallback,
    RunMonitor,
    Stop,
    run_while_polling,
)
from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE
from mediamill.pipeline.coordinator.reporting import OnProgress, PoolWatch, RunFacts, reporting
from mediamill.pipeline.faults import Drained, RunError, stopped_by
from mediamill.pipeline.ladder.attempts import Attempts, Ordinal
from mediamill.pipeline.ladder.steps import Ladder, next_attempts
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.manifest.selection import Selection
from mediamill.pipeline.outcome import Outcome
from mediamill.pipeline.ray_cluster.cluster import await_pools, ray_nodes
from mediamill.pipeline.ray_cluster.pool_sizes import Pools, TooSmallError, capacity
from mediamill.pipeline.records import answer_columns
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.job_resources import size_range
from mediamill.schemas.progress import PROCESSES

_PASSES = 3


class Pass(Protocol):
    """One pass over the unfinished rows."""

    def __call__(
        self,
        pools: Pools,
        attempts: Mapping[Ordinal, Attempts],
        *on_step: Callable[[Any], None],
    ) -> None:
        """Makes the pass. attempts: of rows that were tried before. on_step: see `data_context`."""

    def write(self, rows: pa.Table) -> None:
        """Writes rows of a pass that waited for another one, as they are."""


class Execution:
    """One run on a connected cluster.

    names: parts of the names of the operators that prepare and, if any, generate.
    can_grow: whether nodes may join.
    prepare_bytes: the memory that one prepare actor may need.
    coordinator: the run's, a handle.
    selection: the rows of the run.
    After the run:
    bottleneck: the pool that limited its rate; None if neither did.
    engine_rows_s: rows a second of all engines while they worked; None if not known.
    advice: a sentence with the key to change; None if no key would have helped.
    """

    def __init__(
        self,
        job: JobConfig,
        outcome: Outcome,
        on_progress: OnProgress,
        stop: Stop,
        names: Sequence[str],
        can_grow: bool,
        prepare_bytes: int,
        facts: RunFacts,
        selection: Selection,
    ) -> None:
        self._resources, self._outcome, self._plan = job.resources, outcome, outcome.plan
        self._fetches = job.fetch.at_once
        self._on_progress, self._stop, self._names = on_progress, stop, names
        self._facts, self.selection, self._watch = facts, selection, PoolWatch(*names)
        self._sized: Pools | None = None
        self._wait_s = job.resources.wait_s if can_grow else 0.0
        self._prepare_bytes, self._ladder = prepare_bytes, Ladder(job.retries)
        task = self._plan.task
        self.coordinator = start_coordinator(
            self._plan.output.url,
            outcome.run_id,
            job.resources,
            job.limits,
            (PREPARE, GENERATE)[len(names) - 1],
            answer_columns(task) if task.dedupe else (),
            self._plan.retry is None or not self._plan.retry.changed,
            job.alarms,
        )
        self._drain = DrainCallback(names[-1])
        self._monitor = RunMonitor(self.coordinator, self._drain, stop, job.resources.grace_s)
        self.bottleneck: str | None = None
        self.advice: str | None = None
        self.engine_rows_s: float | None = None

    @property
    def engines_replaced(self) -> int:
        """The engines that broke and were replaced."""
        return self._monitor.engines_replaced

    def run(self, execute: Pass) -> RunError | None:
        """Calls `execute` until every row is finished, or returns why the run stopped.

        Raises JobError when the cluster is too small for the job, and stays so.
        """
        try:
            pools = self._pools()
            with reporting(self._on_progress, self.coordinator, self._facts, self._watch):
                run_while_polling(lambda: self._passes(execute, pools), self._monitor.poll)
        except RunError as error:
            return error
        except Exception as error:
            if type(error) is JobError:  # one of a task also has the frames of its traceback
                raise
            return self._monitor.error or stopped_by(error)
        finally:
            self._drain.abort(RunError("interrupted"))
            if self._stop.requested and not self._stop.can_drain:
                coordinator.kill(self.coordinator)
            else:
                self._look_back()
                coordinator.shut_down(self.coordinator)
        return None

    def _look_back(self) -> None:
        """Finds out what limited the rate, and what would have helped."""
        counters = coordinator.counters_of(self.coordinator)
        self.bottleneck = utilization.bottleneck(utilization.pool_utilization(counters))
        rate = utilization.engine_rate(counters, counters.get("generated", 0))
        workers, *replicas = (pool.wanted for pool in self._watch.pools)
        self.engine_rows_s = rate * max(1, *replicas) if rate and replicas else None
        if self._sized is not None and replicas and not self._stop.requested:
            free = self._resources.model_copy(update={"prepare_workers": "auto"})
            most = capacity(free, self._sized, ray_nodes()).workers
            self.advice = advice(counters, max(1, workers), most, self._fetches)

    def _pools(self) -> Pools:
        try:
            self._sized = await_pools(
                self._resources,
                self._prepare_bytes,
                self._wait_s,
                self._report_waiting,
                generates=len(self._names) > 1,
            )
            return self._sized
        except TooSmallError as error:
            if not self._wait_s:
                raise
            # The cluster may have nodes again another time: the job itself is not wrong.
            raise RunError(str(error)) from None

    def _report_waiting(self, missing: str) -> None:
        if self._stop.requested:
            raise Drained(NOTHING_BEGUN, self._stop.signal)
        self._on_progress(self._facts.begun(PROCESSES, missing))

    def _passes(self, execute: Pass, pools: Pools) -> None:
        passes = 0
        attempts: Mapping[Ordinal, Attempts] = {}
        while passes < _PASSES:
            started = time.monotonic()
            autoscaler = self._autoscaler(pools)
            steps = (autoscaler.on_execution_step, self._watch.on_execution_step)
            execute(pools, attempts, self._drain.on_execution_step, *steps)
            if not (missing := self._missing()):
                return
            if self._monitor.error is not None:
                raise self._monitor.error
            attempts = {}
            deferred = take_deferred(self.coordinator)
            if deferred is None:
                passes += 1
            elif self._ladder.pays(deferred, time.monotonic() - started):
                attempts = next_attempts(deferred)
            else:
                execute.write(deferred)
                if not (missing := self._missing()):
                    return
                passes += 1
            pools = self._pools()
        raise RunError(f"{missing} rows are still missing after {_PASSES} passes over the manifest")

    def _missing(self) -> int:
        ledger.catch_up(self._plan.output, self._outcome.state)
        return self.selection.missing(self._outcome.state)

    def _autoscaler(self, pools: Pools) -> Autoscaler:
        resources, names = self._resources, self._names
        workers, replicas = size_range(resources.prepare_workers), size_range(resources.replicas)
        return Autoscaler(
            (names[0], PoolLimits(*workers, pools.prepare_workers)),
            (names[1], PoolLimits(*replicas, pools.replicas)) if len(names) > 1 else None,
            lambda: capacity(resources, pools, ray_nodes()),
            resources.wait_s,
        )
