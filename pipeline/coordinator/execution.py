"""Makes passes over the unfinished rows until the run has all of them, or has a reason to stop."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from mediamill.pipeline.coordinator import coordinator
from mediamill.pipeline.coordinator.autoscaler import Autoscaler, PoolLimits
from mediamill.pipeline.coordinator.coordinator import reporting, start_coordinator
from mediamill.pipeline.coordinator.deferred import take_deferred
from mediamill.pipeline.coordinator.drain import DrainCallback, RunMonitor, Stop, run_while_polling
from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE
from mediamill.pipeline.faults import Drained, RunError, stopped_by
from mediamill.pipeline.ladder.attempts import Attempts, Ordinal
from mediamill.pipeline.ladder.steps import Ladder, next_attempts
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.outcome import Outcome
from mediamill.pipeline.ray_cluster.cluster import await_pools, ray_nodes
from mediamill.pipeline.ray_cluster.pool_sizes import Pools, TooSmallError, capacity
from mediamill.pipeline.records import answer_columns
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.job_resources import size_range
from mediamill.schemas.result import Progress

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
    bottleneck: after the run, the pool that limited its rate; None if neither did.
    """

    def __init__(
        self,
        job: JobConfig,
        outcome: Outcome,
        on_progress: Callable[[Progress], None] | None,
        stop: Stop,
        names: Sequence[str],
        can_grow: bool,
        prepare_bytes: int,
    ) -> None:
        self._resources, self._outcome, self._plan = job.resources, outcome, outcome.plan
        self._on_progress, self._stop, self._names = on_progress, stop, names
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

    @property
    def engines_replaced(self) -> int:
        """The engines that broke and were replaced."""
        return self._monitor.engines_replaced

    def run(self, execute: Pass) -> RunError | None:
        """Calls `execute` until every row is finished, or returns why the run stopped.

        Raises JobError when the cluster is too small for the job, and stays so.
        """
        rows, skipped = self._outcome.total, self._outcome.before
        try:
            pools = self._pools()
            with reporting(
                self._on_progress, self.coordinator, rows, skipped, self._outcome.started
            ):
                run_while_polling(lambda: self._passes(execute, pools), self._monitor.poll)
        except RunError as error:
            return error
        except Exception as error:
            if type(error) is JobError:  # one of a task also has the frames of its traceback
                raise
            return self._monitor.error or stopped_by(error)
        finally:
            self._drain.abort(RunError("interrupted"))
            self.bottleneck = coordinator.bottleneck(self.coordinator)
            coordinator.shut_down(self.coordinator)
        return None

    def _pools(self) -> Pools:
        try:
            return await_pools(
                self._resources,
                self._prepare_bytes,
                self._wait_s,
                self._report_waiting,
                generates=len(self._names) > 1,
            )
        except TooSmallError as error:
            if not self._wait_s:
                raise
            # The cluster may have nodes again another time: the job itself is not wrong.
            raise RunError(str(error)) from None

    def _report_waiting(self, missing: str) -> None:
        if self._stop.requested:
            raise Drained("nothing had begun", self._stop.signal)
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    rows_total=self._outcome.total,
                    rows_done=self._outcome.before,
                    rows_skipped=self._outcome.before,
                    seconds=time.monotonic() - self._outcome.started,
                    waits_for=missing,
                )
            )

    def _passes(self, execute: Pass, pools: Pools) -> None:
        passes = 0
        attempts: Mapping[Ordinal, Attempts] = {}
        while passes < _PASSES:
            started = time.monotonic()
            on_step = self._drain.on_execution_step, self._autoscaler(pools).on_execution_step
            execute(pools, attempts, *on_step)
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
        return self._outcome.state.rows_left(self._plan.manifest.rows)

    def _autoscaler(self, pools: Pools) -> Autoscaler:
        resources, names = self._resources, self._names
        workers, replicas = size_range(resources.prepare_workers), size_range(resources.replicas)
        return Autoscaler(
            (names[0], PoolLimits(*workers, pools.prepare_workers)),
            (names[1], PoolLimits(*replicas, pools.replicas)) if len(names) > 1 else None,
            lambda: capacity(resources, pools, ray_nodes()),
            resources.wait_s,
        )
