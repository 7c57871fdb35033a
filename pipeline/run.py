"""Runs a job: the one place that knows the order of the stages.

    manifest -> read -> fetch -> prepare -> generate -> parse -> write -> result

Ray Data carries the rows: read and write are tasks, fetch and prepare share CPU actors (media
bytes never cross a process), generate and parse share the actors that hold an engine. What each
stage does is in the file of its name.
"""

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import ledger, staging, storage
from pipeline.checkpoint import local_folder
from pipeline.cluster import data_context, ray_cluster, size_pools
from pipeline.desk import Counter, LedgerCalls, Reporter, start_desk
from pipeline.ledger_state import Counts, LedgerState
from pipeline.plan import Plan, check
from schemas import columns as c
from schemas.errors import JobError
from schemas.job import JobConfig
from schemas.manifest import ManifestSchema
from schemas.result import Progress, Summary, summary_dict

if TYPE_CHECKING:
    from pipeline.write import OutputRules

__all__ = ["Plan", "RunError", "check", "run"]

_CACHE = Path("~/.cache/mediamill/checkpoints")  # of checkpoints that are not on a local disk
_PASSES = 3
_PREPARE_CALLS = 2  # of one actor at once: one fetches while the other decodes
_GENERATE_CALLS = 8  # half of them bring the rows that run, the others those that come next
_LEAST_WRITES, _LEAST_ROWS_PER_WRITE = 16, 64  # a kill costs a small job no more than that


class RunError(RuntimeError):
    """The job stopped before its end. The message says why; running it again goes on."""


def run(
    job: JobConfig,
    plan: Plan | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    address: str | None = None,
) -> Summary:
    """Makes the result rows that the output does not have yet, and says what it did.

    on_progress is called from another thread, about twice a second. address: of a Ray cluster; by
    default the one that this process is connected to, else a new local one for the time of the job.
    Raises JobError when the job cannot work, RunError when it stopped.
    """
    started = time.monotonic()
    plan = plan or check(job)
    state = ledger.load(plan.output)
    if state.sequence != plan.state.sequence:  # another run was here in between
        plan = check(job)
        state = plan.state
    before = state.counts.rows
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    if before == plan.manifest.rows and not staging.has_leftovers(plan.output):
        return _summary(plan, state, Counts(), before, started, run_id)
    try:
        ledger.begin(plan.output, state, run_id, dict(plan.bound), plan.files)
    except ledger.TakenOverError as error:
        raise RunError(str(error)) from error
    staging.recover(plan.output, state.tokens)
    if before < plan.manifest.rows:
        with ray_cluster(address):
            _Run(job, plan, state, run_id, on_progress, started).to_the_end()
        # What a write task has committed and, being killed, not published.
        staging.recover(plan.output, state.tokens)
    summary = _summary(plan, state, state.run_counts, before, started, run_id)
    note = json.dumps(summary_dict(summary), indent=1)
    storage.put(plan.output / ledger.HIDDEN / "runs" / f"{run_id}.json", note.encode())
    ledger.end(plan.output, state, summary_dict(summary))
    return summary


class _Run:
    """One run on a cluster that is there."""

    def __init__(
        self,
        job: JobConfig,
        plan: Plan,
        state: LedgerState,
        run_id: str,
        on_progress: Callable[[Progress], None] | None,
        started: float,
    ) -> None:
        import ray  # here and below: wrong use should not wait for Ray to be imported

        self._job, self._plan, self._state, self._run_id = job, plan, state, run_id
        self._on_progress = on_progress
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._pools = size_pools(
            job.resources, has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0)
        )
        self._desk = start_desk(plan.output.url, run_id)
        self._reporter = Reporter(self._desk, plan.manifest.rows, state.counts.rows, started)

    def to_the_end(self) -> None:
        """Executes the stages until every row is there. Raises RunError."""
        import ray

        try:
            with self._reporter.telling(self._on_progress):
                for _ in range(_PASSES):
                    self._execute()
                    ledger.catch_up(self._plan.output, self._state)
                    if self._state.counts.rows == self._plan.manifest.rows:
                        return
        except JobError:
            raise
        except Exception as error:
            raise RunError(_reason(error)) from error
        finally:
            ray.kill(self._desk)
        left = self._plan.manifest.rows - self._state.counts.rows
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
        }
        with ray.data.DataContext.current(data_context()):
            dataset = ray.data.read_datasource(
                source, num_cpus=pools.task_cpus, override_num_blocks=source.tasks
            )
            dataset = dataset.repartition(target_num_rows_per_block=pools.call_rows)
            dataset = dataset.map_batches(
                _FetchAndPrepare,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_kwargs={
                    **shared,
                    "base": str(Path.cwd()),
                    "count": Counter(self._desk, "prepared"),
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
                    **shared,
                    "threads": pools.engine_threads,
                    "rows": pools.engine_rows,
                    "on_gpu": pools.replica_gpus > 0,
                    "count": Counter(self._desk, "generated"),
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


class _FetchAndPrepare:
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
        return self._prepare(self._fetch(table))


class _GenerateAndParse:
    """What an actor that holds an engine runs."""

    def __init__(
        self,
        job: JobConfig,
        schema: ManifestSchema,
        checkpoint: tuple[str, str],
        count: Callable[[int], None],
        threads: int,
        rows: int,
        on_gpu: bool,
    ) -> None:
        from model.text.tokenizer import Tokenizer
        from pipeline.generate import Generate, GenerateRules
        from pipeline.parse import Parse

        folder = _local(checkpoint)
        rules = GenerateRules.of(job, rows, threads, on_gpu)
        self._generate = Generate(schema, rules, folder, count)
        self._parse = Parse(schema, Tokenizer.load(folder).decode, self._generate.stop)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._parse(self._generate(table))


def _local(checkpoint: tuple[str, str]) -> Path:
    url, content = checkpoint
    return local_folder(url, content, _CACHE.expanduser())


def _summary(
    plan: Plan, state: LedgerState, made: Counts, before: int, started: float, run_id: str
) -> Summary:
    return Summary(
        rows=state.counts.rows,
        ok=state.counts.ok,
        errors=state.counts.errors,
        skipped=before,
        prompt_tokens=made.prompt_tokens,
        visual_tokens=made.visual_tokens,
        output_tokens=made.output_tokens,
        seconds=time.monotonic() - started,
        output=storage.shown(plan.output.url),
        run_id=run_id,
        fingerprint=plan.fingerprint,
    )


def _reason(error: BaseException) -> str:
    """The first cause of what Ray raised, in one line."""
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]}"
