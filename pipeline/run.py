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
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mediamill.pipeline.checkpoint.checkpoint_hash import CheckpointHash
from mediamill.pipeline.checkpoint.machine_copy import local_folder
from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.coordinator.coordinator import RemoteCounter
from mediamill.pipeline.coordinator.drain import Stop
from mediamill.pipeline.coordinator.execution import Execution
from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE
from mediamill.pipeline.coordinator.guarded_stage import CoordinatorCalls, GuardedStage
from mediamill.pipeline.coordinator.ledger_calls import LedgerCalls
from mediamill.pipeline.decoding.memory_estimate import memory_bytes
from mediamill.pipeline.faults import BrokenEngineError, Drained, RunError
from mediamill.pipeline.fetching import spool
from mediamill.pipeline.ladder.attempts import Attempts, Ordinal
from mediamill.pipeline.ledger import ledger, recovery
from mediamill.pipeline.ledger.inventory import take_inventory
from mediamill.pipeline.ledger.state import Counts
from mediamill.pipeline.outcome import Outcome
from mediamill.pipeline.output_rules import output_rules
from mediamill.pipeline.plan import Plan, check
from mediamill.pipeline.ray_cluster.cluster import data_context, ray_cluster
from mediamill.pipeline.ray_cluster.metrics import export_engine_rows
from mediamill.pipeline.ray_cluster.pool_sizes import CALLS_TO_FILL, Node, Pools, size_pools
from mediamill.pipeline.retry.job_note import save_job
from mediamill.pipeline.retry.reopen import reopen_rows
from mediamill.pipeline.tasks.answer_cache import AnswerCalls
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.result import Progress, Summary
from mediamill.schemas.task import CAPTION, Task

if TYPE_CHECKING:
    from mediamill.model.requests import Request

__all__ = ["Drained", "Plan", "RunError", "Stages", "Stop", "check", "run"]

_PREPARE_CALLS = 2  # of one actor at once: one fetches while the other decodes
_GENERATE_CALLS = 8  # half of them bring the rows that run, the others those that come next
_MIN_WRITES, _MIN_ROWS_PER_WRITE = 16, 64  # so that a kill costs a small job little


class PrepareStage:
    """The stage of an actor of the CPU pool: fetch and prepare."""

    def __init__(
        self,
        job: JobConfig,
        schema: ManifestSchema,
        checkpoint: tuple[str, CheckpointHash],
        base: str,
        count: Callable[[int], None],
        task: Task = CAPTION,
    ) -> None:
        # Stages are imported where they run: torch takes seconds, and the driver does not need it.
        from mediamill.pipeline.stages.fetch import Fetch, FetchRules
        from mediamill.pipeline.stages.prepare import Prepare

        self._fetch = Fetch(schema, FetchRules.of(job, base))
        folder = local_folder(*checkpoint, job.resources.cache, weights=False)
        self._prepare = Prepare(schema, job, task, folder, count, base)

    def __call__(self, table: pa.Table) -> pa.Table:
        # Each part is released before the next is fetched: its bytes count until then.
        return pa.concat_tables(list(map(self._prepare, self._fetch.parts(table))))


class GenerateStage:
    """The stage of an actor that has an engine."""

    def __init__(
        self,
        job: JobConfig,
        schema: ManifestSchema,
        checkpoint: tuple[str, CheckpointHash],
        base: str,
        count: Callable[[int], None],
        threads: int,
        rows: int,
        on_gpu: bool,
        ranks: int = 1,
        run: str = "",
        on_end: Callable[[BrokenEngineError], None] | None = None,
        task: Task = CAPTION,
        registry: AnswerCalls | None = None,
    ) -> None:
        from mediamill.model.generation.stopping import before_stop
        from mediamill.pipeline.replica.canary import Canary
        from mediamill.pipeline.stages.generate import EngineSize, Generate

        folder = local_folder(*checkpoint, job.resources.cache)
        size = EngineSize(rows, threads, on_gpu, ranks)
        generate = Generate(schema, job, folder, count, size, on_end, task, registry)
        self._generate = generate
        if run:  # empty if this is not an actor of a run
            export_engine_rows(lambda: generate.rows_now, run)
        self._canary: Canary | None = None
        if job.canary.uri is not None:

            def answer(request: "Request") -> str:
                text = generate.decode(generate.ask(request).output_ids)
                return before_stop(text, generate.stop)

            self._canary = Canary(job, folder, Path(base), generate.sampling, answer)
            self._canary.check()

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._canary is not None:
            self._canary.count(table.num_rows)
        return self._generate(table)


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
) -> Summary:
    """Makes the result rows that the output does not have yet, and returns the run's summary.

    plan: what `check` returned for the job; None = it is checked here.
    on_progress: called from another thread, about twice a second.
    address: of a Ray cluster; None = the one that this process is connected to, else a new local
        one that ends with the job.
    stages: what the actors run.
    stop: asks the run to end early; it may then take up to resources.grace_s.
    on_note: called with sentences for the user, about rows that are done again and the like.
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
            return outcome.summary(Counts())
    with lease.hold(plan.output, run_id):
        plan.new_ids.save()
        try:
            bound, per_file = dict(plan.bound), job.rows_per_file
            ledger.begin(plan.output, state, run_id, bound, plan.files, per_file, plan.resharding)
            if not is_complete and (plan.retry is None or not plan.retry.only):
                recovery.mark_unfinished(plan.output)
            recovery.recover(plan.output, state)
            reopen_rows(plan.output, state, plan.manifest, plan.retry, run_id, tell)
        except ledger.TakenOverError as error:
            raise RunError(str(error)) from error
        if plan.retry is None or not plan.retry.changed:
            save_job(plan.output, job, run_id)
        left = state.rows_left(plan.manifest.rows)
        outcome = replace(outcome, before=state.counts.rows - state.rows_to_redo, left=left)
        if not left:
            return outcome.finish(0)
        stop = stop or Stop()
        if stop.requested:
            raise Drained("nothing had begun", stop.signal)
        try:
            names = [_FetchAndPrepare.__name__]
            names += [] if stages.generate is None else [_GenerateAndParse.__name__]
            prepare_bytes = memory_bytes(job.limits, _PREPARE_CALLS)

            def check_room(nodes: Sequence[Node]) -> None:
                size_pools(job.resources, nodes, prepare_bytes, len(names) > 1)

            with ray_cluster(address, stages != Stages(), check_room) as can_grow:
                execution = Execution(
                    job, outcome, on_progress, stop, names, can_grow, prepare_bytes
                )
                stopped = execution.run(_Pass(job, outcome, stages, execution.coordinator))
                if stopped is not None:
                    # The machine may be about to go: files first, then Ray.
                    outcome.finish_stopped(stopped)
                    raise stopped
        finally:
            spool.sweep()  # Ray ends its actors without letting them tidy up
        return outcome.finish(execution.engines_replaced, execution.bottleneck)


@dataclass(frozen=True)
class _Pass:
    """One pass over the unfinished rows. coordinator: a handle of the run's."""

    job: JobConfig
    outcome: Outcome
    stages: Stages
    coordinator: Any

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
        calls, ledger_calls = CoordinatorCalls(self.coordinator), LedgerCalls(self.coordinator)
        options = {
            "job": self.job,
            "schema": plan.manifest.schema,
            "checkpoint": (plan.model.url, plan.checkpoint),
            "base": str(Path.cwd()),
            "task": plan.task,
        }
        prepare, generate = self.stages.prepare, self.stages.generate
        counters = ("prepared",) if generate else ("prepared", "generated")
        prepare_options = {**options, "count": RemoteCounter(self.coordinator, counters)}
        source = ManifestDatasource(plan.manifest, self.outcome.state, attempts)
        sink = ResultDatasink(
            output_rules(self.job, self.outcome), ledger_calls, self._write_rows()
        )
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
            "count": RemoteCounter(self.coordinator, ("generated",)),
            "registry": AnswerCalls(self.coordinator),
        }

    def _write_rows(self) -> int:
        left = self.outcome.state.rows_left(self.outcome.plan.manifest.rows)
        return min(self.job.rows_per_file, max(_MIN_ROWS_PER_WRITE, left // _MIN_WRITES))

    def write(self, rows: pa.Table) -> None:
        """See `Pass`."""
        from mediamill.pipeline.stages.write import write_rows

        rules = replace(output_rules(self.job, self.outcome), ladder=None)
        write_rows(rows, rules, LedgerCalls(self.coordinator))


def _actor_pool(min_size: int, max_size: int | None, calls: int) -> Any:
    """Returns Ray Data's strategy of a pool. calls: of one actor at once, each in a thread."""
    import ray

    return ray.data.ActorPoolStrategy(
        min_size=min_size,
        max_size=max_size,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=True,
    )
