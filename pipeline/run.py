"""Runs a job: the one place that knows the order of the stages.

    manifest -> read -> fetch -> prepare -> generate -> parse -> write -> result

Ray Data carries the rows: read and write are tasks, fetch and prepare share CPU actors (media
bytes never cross a process), generate and parse share the actors that hold an engine. What each
stage does is in the file of its name.
"""

import json
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline import ledger, staging, storage
from pipeline.checkpoint import local_folder
from pipeline.cluster import ray_cluster, size_pools
from pipeline.ledger_state import Counts, LedgerState, Rows
from pipeline.metrics import Metrics, Rate, eta_s
from pipeline.plan import Plan, check
from schemas import columns as c
from schemas.errors import JobError
from schemas.job import JobConfig
from schemas.manifest import ManifestSchema
from schemas.result import Progress, Summary, summary_dict

if TYPE_CHECKING:
    from ray.data import DataContext

    from pipeline.fetch import FetchRules
    from pipeline.generate import GenerateRules
    from pipeline.prepare import PrepareRules
    from pipeline.write import OutputRules

__all__ = ["Plan", "RunError", "check", "run"]

_CACHE = Path("~/.cache/mediamill/checkpoints")  # of checkpoints that are not on a local disk
_BLOCK_BYTES = 32 * 1024 * 1024
_NO_PROGRESS_S = 2 * 3600  # loading a large model and one slow video must fit
_PASSES = 3
_PREPARE_CALLS = 2  # of one actor at once: one fetches while the other decodes
_GENERATE_CALLS = 4  # as many wait for the engine, so that its next batch is there
_LEAST_WRITES, _LEAST_ROWS_PER_WRITE = 16, 64  # a kill costs a small job no more than that
_POLL_S = 0.5


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
        self._on_progress, self._started = on_progress, started
        self._before = state.counts.rows
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._pools = size_pools(
            job.resources, has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0)
        )
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": -1,
            "scheduling_strategy": here,
        }
        self._desk: Any = ray.remote(_Desk).options(**options).remote(plan.output.url, run_id)

    def to_the_end(self) -> None:
        """Executes the stages until every row is there. Raises RunError."""
        import ray

        try:
            with self._reported():
                for _ in range(_PASSES):
                    self._execute()
                    ledger.catch_up(self._plan.output, self._state)
                    if self._state.counts.rows == self._plan.manifest.rows:
                        return
        except JobError:
            raise
        except Exception as error:
            raise RunError(f"{_reason(error)}; the same command goes on from here") from error
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
        sink = ResultDatasink(self._output_rules(), _LedgerCalls(self._desk), self._write_rows())
        shared = {
            "job": job,
            "schema": plan.manifest.schema,
            "checkpoint": (plan.model.url, plan.checkpoint),
        }
        with ray.data.DataContext.current(_data_context()):
            dataset = ray.data.read_datasource(
                source, num_cpus=pools.task_cpus, override_num_blocks=source.tasks
            )
            dataset = dataset.repartition(target_num_rows_per_block=job.resources.batch_rows)
            dataset = dataset.map_batches(
                _FetchAndPrepare,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_kwargs={
                    **shared,
                    "base": str(Path.cwd()),
                    "count": _Counter(self._desk, "prepared"),
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
                batch_size=job.resources.batch_rows,
                batch_format="pyarrow",
                fn_constructor_kwargs={
                    **shared,
                    "threads": pools.engine_threads,
                    "on_gpu": pools.replica_gpus > 0,
                    "count": _Counter(self._desk, "generated"),
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

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Tells on_progress what the actors have counted, meanwhile and at the end."""
        if self._on_progress is None:
            yield
            return
        on_progress = self._on_progress
        rate, over = Rate(), threading.Event()

        def report() -> None:
            while not over.wait(_POLL_S):
                if progress := self._progress(rate):
                    on_progress(progress)

        reporter = threading.Thread(target=report, daemon=True, name="progress")
        reporter.start()
        try:
            yield
        finally:
            over.set()
            reporter.join()
            if progress := self._progress(rate):
                on_progress(progress)

    def _progress(self, rate: Rate) -> Progress | None:
        """None while an actor does not answer; it may be starting again."""
        import ray

        try:
            counted: dict[str, int]
            whole: Counts
            here: Counts
            counted, (whole, here) = ray.get(
                [self._desk.counted.remote(), self._desk.counts.remote()], timeout=5
            )
        except ray.exceptions.RayError:
            return None
        total = self._plan.manifest.rows
        seconds = time.monotonic() - self._started
        generated = min(counted.get("generated", 0), total - self._before)
        recent = rate.update(seconds, generated)
        return Progress(
            rows_total=total,
            rows_done=whole.rows,
            rows_skipped=self._before,
            ok=here.ok,
            errors=here.errors,
            output_tokens=here.output_tokens,
            seconds=seconds,
            rate_rows_s=recent,
            eta_s=eta_s(total - self._before - generated, recent),
            prepared=counted.get("prepared", 0),
            generated=generated,
            written=here.rows,
        )


class _Desk(ledger.Ledger, Metrics):
    """The run's one owner of numbers: of the true ones, and of those for the eye.

    One actor and not two, since on a laptop each process costs a second of the start.
    """

    def __init__(self, output_url: str, run: str) -> None:
        ledger.Ledger.__init__(self, output_url, run)
        Metrics.__init__(self)


@dataclass(frozen=True)
class _LedgerCalls:
    """The ledger as a write task sees it."""

    actor: Any  # a handle; Ray's types do not know what `remote` returns

    def taken(self, rows: Rows) -> Rows:
        import ray

        found: Rows = ray.get(self.actor.taken.remote(rows))
        return found

    def commit(self, commit: ledger.Commit) -> Rows:
        import ray

        found: Rows = ray.get(self.actor.commit.remote(commit))
        return found


@dataclass(frozen=True)
class _Counter:
    """Adds to one counter and does not wait."""

    actor: Any
    name: str

    def __call__(self, number: int) -> None:
        self.actor.add.remote(self.name, number)


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
        from pipeline.fetch import Fetch
        from pipeline.prepare import Prepare

        self._fetch = Fetch(schema, _fetch_rules(job, base))
        self._prepare = Prepare(schema, _prepare_rules(job), _local(checkpoint), count)

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
        on_gpu: bool,
    ) -> None:
        from model.tokenizer import Tokenizer
        from pipeline.generate import Generate
        from pipeline.parse import Parse

        folder = _local(checkpoint)
        rules = _generate_rules(job, threads, on_gpu)
        self._generate = Generate(schema, rules, folder, count)
        self._parse = Parse(schema, Tokenizer.load(folder).decode)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._parse(self._generate(table))


def _local(checkpoint: tuple[str, str]) -> Path:
    url, content = checkpoint
    return local_folder(url, content, _CACHE.expanduser())


def _fetch_rules(job: JobConfig, base: str) -> "FetchRules":
    from pipeline.fetch import FetchRules

    return FetchRules(job.limits.max_bytes, job.limits.fetch_timeout_s, base)


def _prepare_rules(job: JobConfig) -> "PrepareRules":
    from model.processor import MediaLimits, VideoRules
    from pipeline.prepare import PrepareRules

    limits = MediaLimits(
        max_image_pixels=job.limits.max_image_pixels,
        max_video_pixels=job.limits.max_video_pixels,
        max_frames_decoded=job.limits.max_frames_decoded,
        max_duration_s=job.limits.max_duration_s,
    )
    return PrepareRules(
        prompt=job.prompt,
        system=job.system,
        image_min_pixels=job.image.min_pixels,
        image_max_pixels=job.image.max_pixels,
        video=VideoRules(**job.video.model_dump()),
        limits=limits,
    )


def _generate_rules(job: JobConfig, threads: int, on_gpu: bool) -> "GenerateRules":
    from model.sampling import Sampling
    from pipeline.generate import GenerateRules

    sampling = Sampling(
        max_new_tokens=job.generation.max_new_tokens,
        repetition_penalty=job.generation.repetition_penalty,
    )
    return GenerateRules(
        sampling=sampling,
        dtype=job.resources.dtype,
        device="cuda" if on_gpu else "cpu",
        batch_rows=job.resources.batch_rows,
        threads=threads,
    )


def _data_context() -> "DataContext":
    """Ray Data's settings for this job; the process's own stay as they are."""
    from ray.data import DataContext

    with warnings.catch_warnings():
        # Copying touches Ray's own deprecated settings too.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext.get_current().copy()
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    context.max_errored_blocks = 0  # what is wrong with a row is in the row; all else is a fault
    context.max_consecutive_actor_init_deaths = 2
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_fallback_to_arrow_object_ext_type = False  # never a pickle in a column
    return context


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
