"""Makes passes over the unfinished rows until the run has all of them, or has a reason to stop."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from mediamill.pipeline.coordinator import coordinator
from mediamill.pipeline.coordinator.autoscaler import Autoscaler, PoolLimits
from mediamill.pipeline.coordinator.coordinator import ProgressReporter, start_coordinator
from mediamill.pipeline.coordinator.drain import DrainCallback, RunMonitor, Stop, run_while_polling
from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE
from mediamill.pipeline.faults import Drained, RunError, root_cause
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.outcome import Outcome
from mediamill.pipeline.ray_cluster.cluster import await_pools, ray_nodes
from mediamill.pipeline.ray_cluster.pool_sizes import Pools, TooSmallError, capacity
from mediamill.pipeline.records import answer_columns
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig, Resources
from mediamill.schemas.job_resources import size_range
from mediamill.schemas.result import Progress

_PASSES = 3


class Execution:
    """One run on a connected cluster.

    names: parts of the names of the operators that prepare and, if any, generate.
    can_grow: whether nodes may join.
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
    ) -> None:
        self._resources, self._outcome = job.resources, outcome
        self._plan, self._state = outcome.plan, outcome.state
        self._names, self._stop, self._can_grow = names, stop, can_grow
        self._on_progress = on_progress
        task = self._plan.task
        self.coordinator = start_coordinator(
            self._plan.output.url,
            outcome.run_id,
            job.resources,
            job.limits,
            (PREPARE, GENERATE)[len(names) - 1],
            answer_columns(task) if task.dedupe else (),
        )
        self._reporter = ProgressReporter(
            self.coordinator, self._plan.manifest.rows, outcome.before, outcome.started
        )
        self._drain = DrainCallback(names[-1])
        self._monitor = RunMonitor(self.coordinator, self._drain, stop, job.resources.grace_s)
        self.bottleneck: str | None = None

    @property
    def engines_replaced(self) -> int:
        """The engines that broke and were replaced."""
        return self._monitor.engines_replaced

    def run(
        self, execute: Callable[[Pools, list[Any]], None], prepare_bytes: int
    ) -> RunError | None:
        """Calls `execute` until every row is finished, or returns why the run stopped.

        execute: makes one pass, with these pools and execution callbacks of Ray Data.
        prepare_bytes: that one prepare actor may need.
        Raises JobError when the cluster is too small for the job, and stays so.
        """
        try:
            pools = self._pools(prepare_bytes)
            with self._reporter.reporting(self._on_progress):
                run_while_polling(
                    lambda: self._passes(execute, pools, prepare_bytes), self._monitor.poll
                )
        except JobError:
            raise
        except RunError as error:
            return error
        except Exception as error:  # noqa: BLE001 - Ray's, of any kind
            return self._monitor.error or RunError(root_cause(error))
        finally:
            self._drain.abort(RunError("interrupted"))
            self.bottleneck = coordinator.bottleneck(self.coordinator)
            coordinator.shut_down(self.coordinator)
        return None

    def _pools(self, prepare_bytes: int) -> Pools:
        wait_s = self._resources.wait_s if self._can_grow else 0.0
        try:
            return await_pools(
                self._resources,
                prepare_bytes,
                wait_s,
                self._report_waiting,
                generates=len(self._names) > 1,
            )
        except TooSmallError as error:
            if not wait_s:
                raise
            # The cluster may have nodes again another time: the job itself is not wrong.
            raise RunError(str(error)) from None

    def _report_waiting(self, missing: str) -> None:
        if self._stop.requested:
            raise Drained("nothing had begun", self._stop.signal)
        if self._on_progress is not None:
            skipped = self._outcome.before
            seconds = time.monotonic() - self._outcome.started
            self._on_progress(
                Progress(
                    rows_total=self._plan.manifest.rows,
                    rows_done=skipped,
                    rows_skipped=skipped,
                    seconds=seconds,
                    waits_for=missing,
                )
            )

    def _passes(
        self, execute: Callable[[Pools, list[Any]], None], pools: Pools, prepare_bytes: int
    ) -> None:
        for _ in range(_PASSES):
            execute(pools, [self._drain, _autoscaler(self._names, self._resources, pools)])
            ledger.catch_up(self._plan.output, self._state)
            missing = self._plan.manifest.rows - self._state.counts.rows
            if not missing:
                return
            if self._monitor.error is not None:
                raise self._monitor.error
            pools = self._pools(prepare_bytes)
        raise RunError(f"{missing} rows are still missing after {_PASSES} passes over the manifest")


def _autoscaler(names: Sequence[str], resources: Resources, pools: Pools) -> Autoscaler:
    workers, replicas = size_range(resources.prepare_workers), size_range(resources.replicas)
    return Autoscaler(
        (names[0], PoolLimits(*workers, pools.prepare_workers)),
        (names[1], PoolLimits(*replicas, pools.replicas)) if len(names) > 1 else None,
        lambda: capacity(resources, pools, ray_nodes()),
        resources.wait_s,
    )
