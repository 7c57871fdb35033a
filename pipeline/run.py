"""Runs a job: the one place that knows the order of the stages.

    manifest -> read -> fetch -> prepare -> generate -> write -> result

Ray Data carries the rows: read and write are tasks, fetch and prepare share CPU actors (so that
media bytes never cross a process), and generate has actors with an engine. Each stage is in the
file of its name in stages/.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.pipeline.checkpoint.checkpoint_hash import weights_bytes
from mediamill.pipeline.coordinator import lease, run_status
from mediamill.pipeline.coordinator.coordinator import RemoteCounter
from mediamill.pipeline.coordinator.drain import NOTHING_BEGUN, Stop
from mediamill.pipeline.coordinator.execution import Execution
from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE
from mediamill.pipeline.coordinator.guarded_stage import CoordinatorCalls, GuardedStage
from mediamill.pipeline.coordinator.ledger_calls import LedgerCalls
from mediamill.pipeline.coordinator.reporting import RunFacts
from mediamill.pipeline.coordinator.utilization import WRITE_MS
from mediamill.pipeline.decoding.memory_estimate import memory_bytes
from mediamill.pipeline.faults import Drained, RunError, stopped_by
from mediamill.pipeline.fetching import spool
from mediamill.pipeline.ladder.attempts import Attempts, Ordinal
from mediamill.pipeline.ledger import ledger, recovery
from mediamill.pipeline.ledger.inventory import take_inventory
from mediamill.pipeline.manifest.selection import ALL_ROWS, RowChoice
from mediamill.pipeline.outcome import Outcome
from mediamill.pipeline.output_rules import output_rules
from mediamill.pipeline.plan import Plan, check
from mediamill.pipeline.ray_cluster.cluster import check_local_room, data_context, ray_cluster
from mediamill.pipeline.ray_cluster.pool_sizes import CALLS_TO_FILL, Node, Pools, size_pools
from mediamill.pipeline.retry.job_note import save_job
from mediamill.pipeline.retry.lost_rows import CountRules
from mediamill.pipeline.retry.reopen import reopen_rows
from mediamill.pipeline.tasks.answer_cache import AnswerCalls
from mediamill.pipeline.worker_stages import GenerateStage, PrepareStage
from mediamill.schemas.job import JobConfig
from mediamill.schemas.progress import RAY, Progress
from mediamill.schemas.result import Summary

__all__ = ["Drained", "Plan", "RunError", "Stages", "Stop", "check", "run"]

_PREPARE_CALLS = 2  # of one actor at once: one fetches while the other decodes
_GENERATE_CALLS = 8  # half of them bring the rows that run, the others those that come next
_MIN_WRITES, _MIN_ROWS_PER_WRITE = 16, 64  # so that a kill costs a small job little


@dataclass(frozen=True)
class Stages:
    """The classes whose instances run in the two actor pools; tests and simulations have others.

    An instance is created in the actor with the keyword arguments of the default class, and called
    by several threads with tables of the stage before. Rows whose status is set must pass
    unchanged. generate: None for a run without this stage; `prepare` then returns tables as the
    write takes them.
    """

    prepare: type = PrepareStage
    generate: type | None = GenerateStage


class _FetchAndPrepare(GuardedStage):
    """An actor of the CPU pool; Ray names its processes after this class."""


class _GenerateAndParse(GuardedStage):
    """An actor with an engine; Ray names its processes after this class."""

    def __init__(
        self, stage: type, options: Mapping[str, Any], calls: CoordinatorCalls, pool: str, full: int
    ) -> None:
        # An engine may break while no call waits for it.
        super().__init__(stage, {**options, "on_end": self.exit}, calls, pool, full)


def run(
    job: JobConfig,
    plan: Plan | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    address: str | None = None,
    stages: Stages = Stages(),
    stop: Stop | None = None,
    on_note: Callable[[str], None] | None = None,
    choice: RowChoice = ALL_ROWS,
) -> Summary:
    """Makes the result rows that the output does not have yet, and returns the run's summary.

    plan: what `check` returned for the job; None = it is checked here.
    on_progress: called from another thread, about twice a second.
    address: of a Ray cluster; None = the one that this process is connected to, else a new local
        one that ends with the job.
    stages: what the actors run.
    stop: asks the run to end early; it may then take up to resources.grace_s.
    on_note: called with sentences for the user, about rows that are done again and the like.
    choice: the rows that the run does; the others are left for a later run.
    Raises JobError when the job cannot work, RunError when it stopped or another run works on the
    output, and Drained, which is a RunError, when it was asked to stop.
    """
    started, tell = time.monotonic(), on_note or (lambda _: None)
    plan = plan or check(job)
    state, checked = plan.state, plan.state.sequence
    ledger.catch_up(plan.output, state)
    if state.sequence != checked:  # another run has worked on the output since the check
        plan = check(job, plan.step, retry=plan.retry)
        state = plan.state
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    outcome = Outcome(plan, state, state.counts.rows, started, run_id)
    is_complete = outcome.before == plan.manifest.rows and plan.retry is None
    is_complete = is_complete and recovery.is_settled(plan.output, state)
    if is_complete:
        inventory = take_inventory(plan.output, state)
        is_complete = not inventory.missing_rows and not inventory.gone
        if is_complete and plan.is_recorded:
            for sentence in inventory.sentences():
                tell(sentence)
            return outcome.finish_idle()
    stop = stop or Stop()
    stop.can_drain = False
    names = [_FetchAndPrepare.__name__]
    names += [] if stages.generate is None else [_GenerateAndParse.__name__]
    prepare_bytes = memory_bytes(job.limits, _PREPARE_CALLS)

    def check_room(nodes: Sequence[Node]) -> None:
        size_pools(job.resources, nodes, prepare_bytes, len(names) > 1)

    if on_progress is not None:
        on_progress(RunFacts(plan.manifest.rows, outcome.before, 0, started).begun(RAY))
    if not is_complete:  # a job that is refused leaves nothing behind
        check_local_room(address, check_room)
    with (
        lease.hold(plan.output, run_id),
        run_status.publishing(plan.output, run_id, on_progress) as report,
    ):
        plan.new_ids.save()
        try:
            bound, per_file = dict(plan.bound), job.rows_per_file
            ledger.begin(plan.output, state, run_id, bound, plan.files, per_file, plan.resharding)
            if not is_complete and (plan.retry is None or not plan.retry.only):
                recovery.mark_unfinished(plan.output)
            recovery.recover(plan.output, state)
            rules = CountRules(plan.task.questions, job.alarms.expect_language)
            reopen_rows(plan.output, state, plan.manifest, plan.retry, run_id, tell, rules)
        except ledger.TakenOverError as error:
            raise RunError(str(error)) from error
        if plan.retry is None or not plan.retry.changed:
            save_job(plan.output, job, run_id)
        selection = choice.select(plan.manifest, state)
        if selection.not_again:
            tell(f"{selection.not_again:,} of these error rows are left for a later retry")
        left = state.rows_left(plan.manifest.rows) - selection.not_again
        before = state.counts.rows - state.rows_to_redo + selection.not_again
        outcome = replace(outcome, before=before, left=left)
        if not selection.missing(state):
            return outcome.finish(0, later=selection.later)
        stopped: RunError | None = None
        try:
            if stop.requested:
                raise Drained(NOTHING_BEGUN, stop.signal)
            model_bytes = weights_bytes(plan.model) if len(names) > 1 else None
            facts = RunFacts(
                outcome.total,
                outcome.before,
                selection.later,
                started,
                len(names) > 1,
                model_bytes,
            )
            report(facts.begun(RAY))
            with ray_cluster(address, stages != Stages()) as can_grow:
                execution = Execution(
                    job, outcome, report, stop, names, can_grow, prepare_bytes, facts, selection
                )
                stopped = execution.run(_Pass(job, outcome, stages, execution))
                if stopped is not None:
                    # The machine may be about to go: files first, then Ray.
                    outcome.finish_stopped(stopped)
                    raise stopped
        except BaseException as error:
            if stopped is not None:
                raise
            ended = Drained(NOTHING_BEGUN, stop.signal) if stop.requested else stopped_by(error)
            outcome.finish_stopped(ended)
            if isinstance(error, KeyboardInterrupt | SystemExit) and not stop.can_drain:
                raise ended from None
            raise
        finally:
            spool.sweep()  # Ray ends its actors without letting them tidy up
        return outcome.finish(
            execution.engines_replaced,
            execution.bottleneck,
            execution.engine_rows_s,
            execution.advice,
            selection.later,
        )


@dataclass(frozen=True)
class _Pass:
    """One pass over the unfinished rows of the run."""

    job: JobConfig
    outcome: Outcome
    stages: Stages
    execution: Execution

    def __call__(
        self,
        pools: Pools,
        attempts: Mapping[Ordinal, Attempts],
        *on_step: Callable[[Any], None],
    ) -> None:
        """Executes the stages. attempts, on_step: see `Pass`."""
        import ray

        from mediamill.pipeline.stages.read import ManifestDatasource
        from mediamill.pipeline.stages.write import ResultDatasink

        plan, labels = self.outcome.plan, self.job.resources.labels
        calls, ledger_calls = (
            CoordinatorCalls(self.execution.coordinator),
            LedgerCalls(self.execution.coordinator),
        )
        options = {
            "job": self.job,
            "schema": plan.manifest.schema,
            "checkpoint": (plan.model.url, plan.checkpoint),
            "base": str(Path.cwd()),
            "task": plan.task,
        }
        prepare, generate = self.stages.prepare, self.stages.generate
        counters = ("prepared",) if generate else ("prepared", "generated")
        prepare_options = {**options, "count": RemoteCounter(self.execution.coordinator, counters)}
        source = ManifestDatasource(
            plan.manifest, self.outcome.state, self.execution.selection, attempts
        )
        count_ms = RemoteCounter(self.execution.coordinator, (WRITE_MS,))
        rules = output_rules(self.job, self.outcome)
        sink = ResultDatasink(rules, ledger_calls, self._write_rows(), count_ms)
        with ray.data.DataContext.current(data_context(pools.block_bytes, *on_step)):
            dataset = ray.data.read_datasource(
                source, num_cpus=pools.task_cpus, override_num_blocks=source.tasks
            )
            dataset = dataset.repartition(target_num_rows_per_block=pools.call_rows)
            dataset = dataset.map_batches(
                _FetchAndPrepare,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(prepare, prepare_options, calls, PREPARE),
                compute=_actor_pool(pools.prepare_workers, pools.max_workers, _PREPARE_CALLS),
                num_cpus=pools.prepare_cpus,
                memory=pools.prepare_bytes,
                label_selector=dict(labels.prepare) or None,
            )
            if generate is not None:
                generate_options = {**options, **self._engine_options(pools)}
                dataset = dataset.map_batches(
                    _GenerateAndParse,
                    batch_size=pools.call_rows,
                    batch_format="pyarrow",
                    fn_constructor_args=(
                        generate,
                        generate_options,
                        calls,
                        GENERATE,
                        CALLS_TO_FILL,
                    ),
                    compute=_actor_pool(pools.replicas, pools.max_replicas, _GENERATE_CALLS),
                    num_cpus=pools.replica_cpus,
                    num_gpus=pools.replica_gpus,
                    label_selector=dict(labels.generate) or None,
                )
            dataset.write_datasink(
                sink, ray_remote_args={"num_cpus": pools.task_cpus}, concurrency=pools.write_tasks
            )

    def _engine_options(self, pools: Pools) -> dict[str, Any]:
        return {
            "threads": pools.engine_threads,
            "rows": pools.engine_rows,
            "on_gpu": pools.replica_gpus > 0,
            "ranks": pools.ranks,
            "run": self.outcome.run_id,
            "count": RemoteCounter(self.execution.coordinator, ("generated",)),
            "registry": AnswerCalls(self.execution.coordinator),
        }

    def _write_rows(self) -> int:
        left = self.execution.selection.missing(self.outcome.state)
        return min(self.job.rows_per_file, max(_MIN_ROWS_PER_WRITE, left // _MIN_WRITES))

    def write(self, rows: pa.Table) -> None:
        """See `Pass`."""
        from mediamill.pipeline.stages.write import write_rows

        rules = replace(output_rules(self.job, self.outcome), ladder=None)
        write_rows(rows, rules, LedgerCalls(self.execution.coordinator))


def _actor_pool(min_size: int, max_size: int | None, calls: int) -> Any:
    """Returns Ray Data's strategy of a pool. calls: of one actor at once, each in a thread."""
    import ray

    return ray.data.ActorPoolStrategy(
        min_size=min_size,
        max_size=max_size,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=True,
    )
