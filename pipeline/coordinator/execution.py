"""Turns passes over the unfinished rows into a run that ends: with all rows, or with a reason.

What a pass does is handed in; how rows are made is not known here.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mediamill.pipeline.coordinator import coordinator
from mediamill.pipeline.coordinator.autoscaler import Autoscaler, Bounds
from mediamill.pipeline.coordinator.coordinator import Reporter, start_desk
from mediamill.pipeline.coordinator.drain import Ending, Stop, Valve, attend
from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE, StopRules
from mediamill.pipeline.faults import Drained, RunError
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.outcome import Outcome, reason
from mediamill.pipeline.ray_cluster.cluster import await_pools, ray_nodes
from mediamill.pipeline.ray_cluster.pool_sizes import Pools, TooSmallError, capacity
from mediamill.pipeline.records import answer_columns
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig, Resources
from mediamill.schemas.job_resources import span
from mediamill.schemas.result import Progress

_PASSES = 3


class Execution:
    """One run on a cluster that is there.

    names: parts of the names of the operators that prepare and, if any, generate. can_grow: whether
    nodes may join. desk: the run's, a handle. binds: at the end, the stage that the others waited
    for; None = neither of the pools.
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
        self._wanted, self._outcome = job.resources, outcome
        self._plan, self._state = outcome.plan, outcome.state
        self._names, self._stop, self._can_grow = names, stop, can_grow
        self._on_progress = on_progress
        task = self._plan.task
        self.desk = start_desk(
            self._plan.output.url,
            outcome.run_id,
            replace(StopRules.of(job), last_pool=(PREPARE, GENERATE)[len(names) - 1]),
            answer_columns(task) if task.dedupe else (),
        )
        self._reporter = Reporter(
            self.desk, self._plan.manifest.rows, outcome.before, outcome.started
        )
        self._valve = Valve(names[-1])
        self._ending = Ending(self.desk, self._valve, stop, job.resources.grace_s)
        self.binds: str | None = None

    @property
    def engines(self) -> int:
        """How many broke and were replaced."""
        return self._ending.engines

    def to_the_end(
        self, execute: Callable[[Pools, list[Any]], None], prepare_bytes: int
    ) -> RunError | None:
        """Lets `execute` make passes until every row is there, or returns why not.

        execute: given the pools, and what Ray Data is to call. prepare_bytes: that one actor which
        prepares may need. Raises JobError when the cluster is too small for the job, and stays so.
        """
        try:
            pools = self._pools(prepare_bytes)
            with self._reporter.telling(self._on_progress):
                attend(lambda: self._passes(execute, pools, prepare_bytes), self._ending.heed)
        except JobError:
            raise
        except RunError as error:
            return error
        except Exception as error:  # noqa: BLE001 - Ray's, of any kind
            return self._ending.why or RunError(reason(error))
        finally:
            self._valve.abort(RunError("interrupted"))
            self.binds = coordinator.what_binds(self.desk)
            coordinator.end(self.desk)
        return None

    def _pools(self, prepare_bytes: int) -> Pools:
        wait_s = self._wanted.wait_s if self._can_grow else 0.0
        try:
            return await_pools(
                self._wanted,
                prepare_bytes,
                wait_s,
                self._tell_of_waiting,
                generates=len(self._names) > 1,
            )
        except TooSmallError as error:
            if not wait_s:
                raise
            # The cluster may have nodes again another time: the job itself is not wrong.
            raise RunError(str(error)) from None

    def _tell_of_waiting(self, missing: str) -> None:
        if self._stop.asked:
            raise Drained("nothing had begun", self._stop.signal)
        if self._on_progress is not None:
            before = self._outcome.before
            seconds = time.monotonic() - self._outcome.started
            self._on_progress(
                Progress(
                    rows_total=self._plan.manifest.rows,
                    rows_done=before,
                    rows_skipped=before,
                    seconds=seconds,
                    waits_for=missing,
                )
            )

    def _passes(
        self, execute: Callable[[Pools, list[Any]], None], pools: Pools, prepare_bytes: int
    ) -> None:
        for _ in range(_PASSES):
            execute(pools, [self._valve, _growth(self._names, self._wanted, pools)])
            ledger.catch_up(self._plan.output, self._state)
            left = self._plan.manifest.rows - self._state.counts.rows
            if not left:
                return
            if self._ending.why is not None:
                raise self._ending.why
            pools = self._pools(prepare_bytes)
        raise RunError(f"{left} rows are still missing after {_PASSES} passes over the manifest")


def _growth(names: Sequence[str], wanted: Resources, pools: Pools) -> Autoscaler:
    workers, replicas = span(wanted.prepare_workers), span(wanted.replicas)
    return Autoscaler(
        (names[0], Bounds(*workers, pools.prepare_workers)),
        (names[1], Bounds(*replicas, pools.replicas)) if len(names) > 1 else None,
        lambda: capacity(wanted, pools, ray_nodes()),
        wanted.wait_s,
    )
