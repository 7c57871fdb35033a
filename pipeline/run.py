"""Runs a job: the one place that knows the order of the stages.

    manifest -> read -> fetch -> prepare -> generate -> parse -> write -> result

Ray Data carries the rows: read and write are tasks, fetch and prepare share CPU actors (media
bytes never cross a process), generate and parse share the actors that hold an engine. What each
stage does is in the file of its name.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import storage
from pipeline.checkpoint import local_folder
from pipeline.cluster import data_context, ray_cluster, size_pools
from pipeline.commit import ledger, staging
from pipeline.commit.ledger_state import Counts
from pipeline.faults import Drained, RunError
from pipeline.fetching import spool
from pipeline.outcome import Outcome, reason
from pipeline.plan import Plan, check
from pipeline.running.desk import Counter, LedgerCalls, Reporter, start_desk
from pipeline.running.drain import Ending, Stop, Valve, attend
from pipeline.running.guard import DeskCalls, Guard
from pipeline.running.watch import GENERATE, PREPARE, StopRules
from schemas import columns as c
from schemas.errors import JobError
from schemas.job import JobConfig
from schemas.manifest import ManifestSchema
from schemas.result import Progress, Summary

if TYPE_CHECKING:
    from pipeline.write import OutputRules

__all__ = ["Drained", "Plan", "RunError", "Stages", "Stop", "check", "run"]

_CACHE = Path("~/.cache/mediamill/checkpoints")  # of checkpoints that are not on a local disk
_PASSES = 3
_PREPARE_CALLS = 2  # of one actor at once: one fetches while the other decodes
_GENERATE_CALLS = 8  # half of them bring the rows that run, the others those that come next
_LEAST_WRITES, _LEAST_ROWS_PER_WRITE = 16, 64  # a kill costs a small job no more than that


class PrepareStage:
    """What an actor of the CPU pool runs."""

    def __init__(
        self,
        job: JobConfig,
        schema: ManifestSchema,
        checkpoint: tuple[str, str],
        base: str,
        count: Callable[[int], None],
    ) -> None:
        # Stages are imported where they run: torch takes seconds, and the driver does not need it.
        from pipeline.fetch import Fetch, FetchRules
        from pipeline.prepare import Prepare, PrepareRules

        self._fetch = Fetch(schema, FetchRules.of(job, base))
        self._prepare = Prepare(schema, PrepareRules.of(job), _local(checkpoint), count)

    def __call__(self, table: pa.Table) -> pa.Table:
        # Each part is let go of before the next is asked for: its bytes are counted until then.
        return pa.concat_tables(list(map(self._prepare, self._fetch.parts(table))))


class GenerateStage:
    """What an actor that holds an engine runs."""

    def __init__(
        self,
        job: JobConfig,
        schema: ManifestSchema,
        checkpoint: tuple[str, str],
        base: str,
        count: Callable[[int], None],
        threads: int,
        rows: int,
        on_gpu: bool,
    ) -> None:
        from model.generation.stopping import before_stop
        from model.text.tokenizer import Tokenizer
        from pipeline.canary import Canary
        from pipeline.generate import Generate, GenerateRules
        from pipeline.parse import Parse

        folder = _local(checkpoint)
        rules = GenerateRules.of(job, rows, threads, on_gpu)
        self._generate = generate = Generate(schema, rules, folder, count)
        decode = Tokenizer.load(folder).decode
        self._parse = Parse(schema, decode, generate.stop)
        self._canary: Canary | None = None
        if job.canary.uri is not None:
            self._canary = Canary(
                job,
                folder,
                Path(base),
                generate.sampling,
                lambda request: before_stop(
                    decode(generate.ask(request).output_ids), generate.stop
                ),
            )
            self._canary.check()

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._canary is not None:
            self._canary.pass_by(table.num_rows)
        return self._parse(self._generate(table))


@dataclass(frozen=True)
class Stages:
    """The classes whose instances the two actor pools hold; others are given to simulate them.

    An instance is made in the actor from the keywords that the default one takes, and called with
    the tables that the stage before made, by several threads at once. Rows whose status is set
    already are to pass by.
    """

    prepare: type = PrepareStage
    generate: type = GenerateStage


class _FetchAndPrepare(Guard):
    """An actor of the CPU pool; Ray names its processes so."""


class _GenerateAndParse(Guard):
    """An actor that holds an engine; Ray names its processes so."""


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
    Raises JobError when the job cannot work, RunError when it stopped, and Drained, which
    is one, when it was asked to.
    """
    started = time.monotonic()
    plan = plan or check(job)
    state, seen = plan.state, plan.state.sequence
    ledger.catch_up(plan.output, state)
    if state.sequence != seen:  # another run was here in between
        plan = check(job)
        state = plan.state
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    outcome = Outcome(plan, state, state.counts.rows, started, run_id)
    if outcome.before == plan.manifest.rows and staging.is_settled(plan.output, state):
        return outcome.summary(Counts())
    plan.new_ids.keep()
    try:
        ledger.begin(plan.output, state, run_id, dict(plan.bound), plan.files, job.rows_per_file)
        staging.mark_unfinished(plan.output)
        staging.recover(plan.output, state)
    except ledger.TakenOverError as error:
        raise RunError(str(error)) from error
    stop, engines = stop or Stop(), 0
    if outcome.before < plan.manifest.rows:
        if stop.asked:
            raise Drained("nothing had begun", stop.signal)
        try:
            with ray_cluster(address):
                going = _Run(job, outcome, on_progress, stages, stop)
                stopped, engines = going.to_the_end(), going.engines
                if stopped is not None:
                    # The machine may be about to go: files first, then Ray.
                    outcome.keep(stopped)
                    raise stopped
        finally:
            spool.sweep()  # Ray ends its actors without letting them tidy up
    return outcome.finish(engines)


class _Run:
    """One run on a cluster that is there."""

    def __init__(
        self,
        job: JobConfig,
        outcome: Outcome,
        on_progress: Callable[[Progress], None] | None,
        stages: Stages,
        stop: Stop,
    ) -> None:
        import ray  # here and below: wrong use should not wait for Ray to be imported

        self._job, self._plan, self._state = job, outcome.plan, outcome.state
        self._run_id = outcome.run_id
        self._on_progress, self._stages = on_progress, stages
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._pools = size_pools(
            job.resources, has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0)
        )
        self._desk = start_desk(self._plan.output.url, self._run_id, StopRules.of(job))
        self._reporter = Reporter(
            self._desk, self._plan.manifest.rows, outcome.before, outcome.started
        )
        self._valve = Valve(_GenerateAndParse.__name__)
        self._ending = Ending(self._desk, self._valve, stop, job.resources.grace_s)

    @property
    def engines(self) -> int:
        """How many broke and were replaced."""
        return self._ending.engines

    def to_the_end(self) -> RunError | None:
        """Executes the stages until every row is there, or returns why not."""
        import ray

        try:
            with self._reporter.telling(self._on_progress):
                attend(self._passes, self._ending.heed)
        except JobError:
            raise
        except RunError as error:
            return error
        except Exception as error:  # noqa: BLE001 - Ray's, of any kind
            return self._ending.why or RunError(reason(error))
        finally:
            self._valve.abort(RunError("interrupted"))
            ray.kill(self._desk)
        return None

    def _passes(self) -> None:
        for _ in range(_PASSES):
            self._execute()
            ledger.catch_up(self._plan.output, self._state)
            left = self._plan.manifest.rows - self._state.counts.rows
            if not left:
                return
            if self._ending.why is not None:
                raise self._ending.why
        raise RunError(f"{left} rows are still missing after {_PASSES} passes over the manifest")

    def _execute(self) -> None:
        """One pass over the unfinished rows."""
        import ray

        from pipeline.read import ManifestDatasource
        from pipeline.write import ResultDatasink

        job, plan, pools = self._job, self._plan, self._pools
        source = ManifestDatasource(plan.manifest, self._state)
        sink = ResultDatasink(self._output_rules(), LedgerCalls(self._desk), self._write_rows())
        shared = {
            "job": job,
            "schema": plan.manifest.schema,
            "checkpoint": (plan.model.url, plan.checkpoint),
            "base": str(Path.cwd()),
        }
        with ray.data.DataContext.current(data_context(self._valve)):
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
                        "count": Counter(self._desk, "prepared"),
                    },
                    "desk": DeskCalls(self._desk),
                    "pool": PREPARE,
                },
                compute=ray.data.ActorPoolStrategy(
                    size=pools.prepare_workers,
                    max_concurrent_calls_per_actor=_PREPARE_CALLS,
                    enable_true_multi_threading=True,
                ),
                num_cpus=pools.prepare_cpus,
                memory=pools.prepare_bytes,
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
                        "count": Counter(self._desk, "generated"),
                    },
                    "desk": DeskCalls(self._desk),
                    "pool": GENERATE,
                },
                compute=ray.data.ActorPoolStrategy(
                    size=pools.replicas,
                    max_concurrent_calls_per_actor=_GENERATE_CALLS,
                    enable_true_multi_threading=True,
                ),
                num_cpus=pools.replica_cpus,
                num_gpus=pools.replica_gpus,
            )
            dataset.write_datasink(
                sink, ray_remote_args={"num_cpus": pools.task_cpus}, concurrency=pools.write_tasks
            )

    def _write_rows(self) -> int:
        left = self._plan.manifest.rows - self._state.counts.rows
        return min(self._job.rows_per_file, max(_LEAST_ROWS_PER_WRITE, left // _LEAST_WRITES))

    def _output_rules(self) -> "OutputRules":
        from pipeline.write import OutputRules

        constants = {
            c.MODEL: storage.shown(self._job.model),
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


def _local(checkpoint: tuple[str, str]) -> Path:
    url, content = checkpoint
    return local_folder(url, content, _CACHE.expanduser())
