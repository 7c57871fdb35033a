"""Runs a job: the one place that knows the order of the stages.

    manifest -> read -> fetch -> prepare -> generate -> write -> result

Ray Data carries the rows: read and write are tasks, fetch and prepare share CPU actors (media
bytes never cross a process), generate has actors that hold an engine. What each
stage does is in the file of its name.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mediamill.pipeline.checkpoint.content_hash import CheckpointHash
from mediamill.pipeline.checkpoint.local_copy import local_folder
from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.coordinator.coordinator import LedgerCalls, RemoteCounter
from mediamill.pipeline.coordinator.drain import Stop
from mediamill.pipeline.coordinator.execution import Execution
from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE
from mediamill.pipeline.coordinator.guarded_stage import CoordinatorCalls, GuardedStage
from mediamill.pipeline.decoding.memory_estimate import memory_bytes
from mediamill.pipeline.faults import BrokenEngineError, Drained, RunError
from mediamill.pipeline.fetching import spool
from mediamill.pipeline.ledger import ledger, recovery
from mediamill.pipeline.ledger.state import Counts
from mediamill.pipeline.outcome import Outcome
from mediamill.pipeline.plan import Plan, check
from mediamill.pipeline.ray_cluster.cluster import data_context, ray_cluster
from mediamill.pipeline.ray_cluster.metrics import export_engine_rows
from mediamill.pipeline.ray_cluster.pool_sizes import CALLS_TO_FILL, Pools
from mediamill.pipeline.storage import storage
from mediamill.pipeline.tasks.answer_cache import AnswerCalls
from mediamill.schemas import columns as c
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.result import Progress, Summary
from mediamill.schemas.task import CAPTION, Task

if TYPE_CHECKING:
    from mediamill.pipeline.stages.write import OutputRules

__all__ = ["Drained", "Plan", "RunError", "Stages", "Stop", "check", "run"]

_PREPARE_CALLS = 2  # of one actor at once: one fetches while the other decodes
_GENERATE_CALLS = 8  # half of them bring the rows that run, the others those that come next
_LEAST_WRITES, _LEAST_ROWS_PER_WRITE = 16, 64  # a kill costs a small job no more than that


class PrepareStage:
    """What an actor of the CPU pool runs."""

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
        self._prepare = Prepare(schema, job, task, folder, count)

    def __call__(self, table: pa.Table) -> pa.Table:
        # Each part is let go of before the next is asked for: its bytes are counted until then.
        return pa.concat_tables(list(map(self._prepare, self._fetch.parts(table))))


class GenerateStage:
    """What an actor that holds an engine runs."""

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
        from mediamill.pipeline.stages.generate import Generate, GenerateRules

        folder = local_folder(*checkpoint, job.resources.cache)
        rules = GenerateRules.of(job, rows, threads, on_gpu, ranks)
        self._generate = generate = Generate(schema, rules, folder, count, on_end, task, registry)
        if run:  # else these are not the actors of one
            export_engine_rows(lambda: generate.rows_now, run)
        self._canary: Canary | None = None
        if job.canary.uri is not None:
            self._canary = Canary(
                job,
                folder,
                Path(base),
                generate.sampling,
                lambda request: before_stop(
                    generate.decode(generate.ask(request).output_ids), generate.stop
                ),
            )
            self._canary.check()

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._canary is not None:
            self._canary.count(table.num_rows)
        return self._generate(table)


@dataclass(frozen=True)
class Stages:
    """The classes whose instances the two actor pools hold; others are given to simulate them.

    An instance is made in the actor from the keywords that the default one takes, and called with
    the tables that the stage before made, by several threads at once. Rows whose status is set
    already are to pass by.
    """

    prepare: type = PrepareStage
    generate: type = GenerateStage


class _FetchAndPrepare(GuardedStage):
    """An actor of the CPU pool; Ray names its processes so."""


class _GenerateAndParse(GuardedStage):
    """An actor that holds an engine; Ray names its processes so."""

    def __init__(
        self,
        stage: type,
        options: Mapping[str, Any],
        coordinator: CoordinatorCalls,
        pool: str,
        calls: int,
    ) -> None:
        # An engine may break while nobody waits for it.
        super().__init__(stage, {**options, "on_end": self.exit}, coordinator, pool, calls)


def run(
    job: JobConfig,
    plan: Plan | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    address: str | None = None,
    stages: Stages = Stages(),
    stop: Stop | None = None,
) -> Summary:
    """Makes the result rows that the output does not have yet, and says what it did.

    on_progress is called from another thread, about twice a second. address: of a Ray cluster; by
    default the one that this process is connected to, else a new local one for the time of the job.
    stages: what the actors hold. stop: asks the run to end early; it may then take up to
    resources.grace_s.
    Raises JobError when the job cannot work, RunError when it stopped or another run is at work on
    the output, and Drained, which is one, when it was asked to.
    """
    started = time.monotonic()
    plan = plan or check(job)
    state, seen = plan.state, plan.state.sequence
    ledger.catch_up(plan.output, state)
    if state.sequence != seen:  # another run was here in between
        plan = check(job, plan.step)
        state = plan.state
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    outcome = Outcome(plan, state, state.counts.rows, started, run_id)
    if outcome.before == plan.manifest.rows and recovery.is_settled(plan.output, state):
        return outcome.summary(Counts())
    with lease.hold(plan.output, run_id):
        plan.new_ids.save()
        try:
            bound = dict(plan.bound)
            ledger.begin(plan.output, state, run_id, bound, plan.files, job.rows_per_file)
            recovery.mark_unfinished(plan.output)
            recovery.recover(plan.output, state)
        except ledger.TakenOverError as error:
            raise RunError(str(error)) from error
        stop, engines, binds = stop or Stop(), 0, None
        if outcome.before < plan.manifest.rows:
            if stop.requested:
                raise Drained("nothing had begun", stop.signal)
            try:
                with ray_cluster(address) as can_grow:
                    names = (_FetchAndPrepare.__name__, _GenerateAndParse.__name__)
                    going = Execution(job, outcome, on_progress, stop, names, can_grow)
                    one_pass = _Pass(job, outcome, stages, going.coordinator)
                    need = memory_bytes(job.limits, _PREPARE_CALLS)
                    stopped = going.run(one_pass, need)
                    engines, binds = going.engines_replaced, going.bottleneck
                    if stopped is not None:
                        # The machine may be about to go: files first, then Ray.
                        outcome.finish_stopped(stopped)
                        raise stopped
            finally:
                spool.sweep()  # Ray ends its actors without letting them tidy up
        return outcome.finish(engines, binds)


class _Pass:
    """One pass over the unfinished rows."""

    def __init__(self, job: JobConfig, outcome: Outcome, stages: Stages, coordinator: Any) -> None:
        self._job, self._plan, self._state = job, outcome.plan, outcome.state
        self._run_id, self._stages, self._coordinator = outcome.run_id, stages, coordinator

    def __call__(self, pools: Pools, callbacks: Sequence[Any]) -> None:
        """Executes the stages. callbacks: called by Ray Data's scheduling loop."""
        import ray

        from mediamill.pipeline.stages.read import ManifestDatasource
        from mediamill.pipeline.stages.write import ResultDatasink

        job, plan = self._job, self._plan
        source = ManifestDatasource(plan.manifest, self._state)
        sink = ResultDatasink(
            self._output_rules(), LedgerCalls(self._coordinator), self._write_rows()
        )
        shared = {
            "job": job,
            "schema": plan.manifest.schema,
            "checkpoint": (plan.model.url, plan.checkpoint),
            "base": str(Path.cwd()),
            "task": plan.task,
        }
        with ray.data.DataContext.current(data_context(pools.block_bytes, *callbacks)):
            dataset = ray.data.read_datasource(
                source, num_cpus=pools.task_cpus, override_num_blocks=source.tasks
            )
            dataset = dataset.repartition(target_num_rows_per_block=pools.call_rows)
            dataset = dataset.map_batches(
                _FetchAndPrepare,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_kwargs={
                    "stage": self._stages.prepare,
                    "options": {
                        **shared,
                        "count": RemoteCounter(self._coordinator, "prepared"),
                    },
                    "coordinator": CoordinatorCalls(self._coordinator),
                    "pool": PREPARE,
                    "calls": 1,
                },
                compute=ray.data.ActorPoolStrategy(
                    min_size=pools.prepare_workers,
                    max_size=pools.max_workers,
                    max_concurrent_calls_per_actor=_PREPARE_CALLS,
                    enable_true_multi_threading=True,
                ),
                num_cpus=pools.prepare_cpus,
                memory=pools.prepare_bytes,
                label_selector=dict(job.resources.labels.prepare) or None,
            )
            dataset = dataset.map_batches(
                _GenerateAndParse,
                batch_size=pools.call_rows,
                batch_format="pyarrow",
                fn_constructor_kwargs={
                    "stage": self._stages.generate,
                    "options": {
                        **shared,
                        "threads": pools.engine_threads,
                        "rows": pools.engine_rows,
                        "on_gpu": pools.replica_gpus > 0,
                        "ranks": pools.ranks,
                        "run": self._run_id,
                        "count": RemoteCounter(self._coordinator, "generated"),
                        "registry": AnswerCalls(self._coordinator),
                    },
                    "coordinator": CoordinatorCalls(self._coordinator),
                    "pool": GENERATE,
                    "calls": CALLS_TO_FILL,
                },
                compute=ray.data.ActorPoolStrategy(
                    min_size=pools.replicas,
                    max_size=pools.max_replicas,
                    max_concurrent_calls_per_actor=_GENERATE_CALLS,
                    enable_true_multi_threading=True,
                ),
                num_cpus=pools.replica_cpus,
                num_gpus=pools.replica_gpus,
                label_selector=dict(job.resources.labels.generate) or None,
            )
            dataset.write_datasink(
                sink, ray_remote_args={"num_cpus": pools.task_cpus}, concurrency=pools.write_tasks
            )

    def _write_rows(self) -> int:
        left = self._plan.manifest.rows - self._state.counts.rows
        return min(self._job.rows_per_file, max(_LEAST_ROWS_PER_WRITE, left // _LEAST_WRITES))

    def _output_rules(self) -> "OutputRules":
        from mediamill.pipeline.stages.write import OutputRules

        constants = {
            c.MODEL: storage.redact(self._job.model),
            c.FINGERPRINT: self._plan.fingerprint,
            c.RUN_ID: self._run_id,
        }
        return OutputRules(
            self._plan.output.url,
            self._plan.schema,
            self._job.partition_by,
            self._job.rows_per_file,
            constants,
        )
