"""Forecasts a job: its rows, tokens, time, cost and memory. Starts no Ray and writes no output."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig, parse_config
from mediamill.pipeline.annotate.annotate import check_annotation, windows_job
from mediamill.pipeline.annotate.window_columns import WINDOWS_FOLDER, window_schema
from mediamill.pipeline.checkpoint.machine_copy import local_folder
from mediamill.pipeline.forecast.engine_run import EngineRun
from mediamill.pipeline.forecast.estimates import Estimate, total
from mediamill.pipeline.forecast.finished_answers import answer_lengths
from mediamill.pipeline.forecast.machines import StageTimes, at_rate, find_gpu, here, on_gpus
from mediamill.pipeline.forecast.measured_rows import Measurer, RowMeasurer, WindowMeasurer
from mediamill.pipeline.forecast.memory import Memory, forecast_memory
from mediamill.pipeline.forecast.pending_rows import PendingRows
from mediamill.pipeline.forecast.remembered import SampleCache
from mediamill.pipeline.forecast.sample import NOTHING, Sampler, SampleResult, SampleRules
from mediamill.pipeline.forecast.this_machine import ThisMachine
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.state import Counts
from mediamill.pipeline.plan import Plan, check
from mediamill.pipeline.ray_cluster.pool_sizes import Pools, size_pools
from mediamill.pipeline.storage import storage
from mediamill.schemas.job import JobConfig, job_dict
from mediamill.schemas.manifest import ManifestSchema, check_manifest_schema
from mediamill.schemas.task import TextTask

_FRAME_ROWS, _FRAME_BYTES = 65_536, 128 << 20  # of which cheap values are read
_RUN_BYTES = 4e9  # of weights: larger ones are run here only if that is asked for
_SEED = 0x5EED


@dataclass(frozen=True)
class ForecastOptions:
    """What the user asks for.

    seconds: for measuring. run_rows: rows that the engine answers; None = as many as are needed.
    gpu, gpus: a named GPU and their number; None = this machine.
    rows_s: rows a second of the whole job; tokens_s: prompt and output tokens a second.
    price: of an hour of a GPU, or of this machine. again: measures though it was measured before.
    """

    seconds: float = 15.0
    run_rows: int | None = None
    gpu: str | None = None
    gpus: int = 1
    rows_s: float | None = None
    tokens_s: float | None = None
    price: float | None = None
    again: bool = False


@dataclass(frozen=True)
class Forecast:
    """A forecast.

    rows, done, failed, to_do: of the manifest; of annotate, `units` are the windows to do.
    output_basis: how the output tokens were found. times: None if nothing says how long it takes.
    machines: GPUs, or 1 for this machine. cost: in the unit of the price.
    """

    rows: int
    done: int
    failed: int
    to_do: int
    unit: str
    units: Estimate
    sample: SampleResult
    output_tokens: Estimate
    output_basis: str
    times: StageTimes | None
    machine: str
    machines: int
    price: float | None
    cost: Estimate | None
    memory: Memory
    pools: Pools
    notes: tuple[str, ...]
    fingerprint: str
    remembered: bool


@dataclass(frozen=True)
class _Subject:
    """A checked job. counts: of finished rows of the result. captions: the job that is answered.

    schema: of its manifest. left: the share of the sampled rows' work that is left.
    """

    job: JobConfig
    plan: Plan
    captions: JobConfig
    schema: ManifestSchema
    counts: Counts
    pending: PendingRows
    config: Qwen2VLConfig


def forecast(
    job: JobConfig,
    options: ForecastOptions = ForecastOptions(),
    on_phase: Callable[[str], None] = lambda _: None,
) -> Forecast:
    """Returns the forecast of a job. on_phase: called with what is done next.

    Raises JobError for a job that cannot run.
    """
    on_phase("checking the job and reading the manifest")
    gpu = None if options.gpu is None else find_gpu(options.gpu)
    subject = _check(job)
    machine = ThisMachine.measure()
    pools = size_pools(job.resources, [machine.node])
    cache = SampleCache(job.resources.cache)
    key = cache.key(_key(subject, options, pools))
    sample = None if options.again else cache.load(key)
    remembered = sample is not None
    if not subject.pending.total:
        sample = NOTHING
    if sample is None:
        sample = _measure(subject, options, pools, on_phase)
        cache.save(key, sample)
    return _Result(subject, options, pools, machine, sample).forecast(gpu, remembered)


def _check(job: JobConfig) -> _Subject:
    if job.job != "annotate":
        plan = check(job, will_run=False)
        pending = PendingRows.of(plan)
        schema, captions, counts = plan.manifest.schema, job, plan.state.counts
    else:
        annotation = check_annotation(job, will_run=False)
        plan, captions = annotation.split, windows_job(job)
        # Windows are not known before the split: all videos are sampled, finished ones too.
        pending = PendingRows(plan.manifest, {})
        schema = check_manifest_schema(window_schema(plan.manifest.schema), "the windows")
        counts = ledger.load(annotation.output / WINDOWS_FOLDER).counts
    config = parse_config(storage.read(plan.model / "config.json"), plan.model.url)
    return _Subject(job, plan, captions, schema, counts, pending, config)


def _key(subject: _Subject, options: ForecastOptions, pools: Pools) -> dict[str, Any]:
    keys = job_dict(subject.job)
    for name in ("output", "rows_per_file", "partition_by"):
        keys.pop(name)
    try:
        release = version("mediamill")
    except PackageNotFoundError:
        release = ""
    return {
        "job": keys,
        "fingerprint": subject.plan.fingerprint,
        "files": [(file.name, file.version, file.rows) for file in subject.plan.manifest.files],
        "done": [subject.plan.output.url, subject.plan.state.sequence]
        if subject.plan.state.counts.rows
        else None,
        "options": [options.seconds, options.run_rows, options.gpu is None],
        "pools": asdict(pools),
        "version": release,
    }


def _measure(
    subject: _Subject,
    options: ForecastOptions,
    pools: Pools,
    on_phase: Callable[[str], None],
) -> SampleResult:
    rng = np.random.default_rng(_SEED)
    plan, job = subject.plan, subject.job
    most = min(_FRAME_ROWS, int(_FRAME_BYTES / subject.pending.row_bytes(rng)))
    drawn = subject.pending.draw(max(64, most), rng)
    runs = _runs_here(subject, options)
    folder = local_folder(plan.model.url, plan.checkpoint, job.resources.cache, weights=runs)
    rules = SampleRules(
        options.seconds,
        options.run_rows,
        subject.config.text.context_length,
        isinstance(plan.task, TextTask),
    )
    measurer: Measurer | None = None
    with ThreadPoolExecutor(1, "engine") as threads:
        engine: Future[EngineRun] | None = None
        if runs and subject.pending.total:
            on_phase("loading the model")
            arguments = (subject.schema, subject.captions, plan.task, folder, pools)
            engine = threads.submit(EngineRun, *arguments)
        try:
            measurer = _measurer(subject, folder, rng)
            if engine is not None:
                engine.exception()  # its load would slow the first rows
            on_phase("measuring rows")
            base = str(Path.cwd())
            population = subject.pending.total
            sampler = Sampler(drawn, population, measurer, rules, rng, job.video, base)
            return sampler.take(engine)
        finally:
            if measurer is not None:
                measurer.close()


def _measurer(subject: _Subject, folder: Path, rng: np.random.Generator) -> Measurer:
    schema, job, task = subject.plan.manifest.schema, subject.job, subject.plan.task
    if job.job == "annotate":
        return WindowMeasurer(schema, job, subject.captions, task, folder, rng)
    return RowMeasurer(schema, job, task, folder)


def _runs_here(subject: _Subject, options: ForecastOptions) -> bool:
    """Whether the engine answers some rows on this machine."""
    if options.run_rows is not None:
        return options.run_rows > 0
    model = subject.plan.model
    if not model.is_local or subject.job.resources.tensor_parallel > 1:
        return False
    sizes = [path.stat().st_size for path in Path(model.path).glob("*.safetensors")]
    return sum(sizes) <= _RUN_BYTES


@dataclass(frozen=True)
class _Result:
    """What was measured, and what follows from it."""

    subject: _Subject
    options: ForecastOptions
    pools: Pools
    here: ThisMachine
    sample: SampleResult

    def forecast(self, gpu_named: Any, remembered: bool) -> Forecast:
        subject, options, plan = self.subject, self.options, self.subject.plan
        sample, notes = self.sample, list(plan.notes)
        if subject.job.job == "annotate" and sample.units.value:
            left = max(0.0, 1.0 - subject.counts.rows / sample.units.value)
            sample = sample.times(left)
            if subject.job.annotate.summary_prompt is not None:
                notes.append("the summaries of whole videos are not part of this forecast")
        if plan.task.dedupe:
            sample = sample.without_copies()
        output, basis = self._output(sample)
        units = sample.units
        times = self._times(sample, output, units, gpu_named)
        machines = options.gpus if gpu_named is not None else max(1, self.here.gpus)
        per_gpu = gpu_named is not None or self.here.gpus > 0
        cost = None
        if options.price is not None and times is not None:
            cost = times.seconds.times(machines * options.price / 3600)
        count = max(1.0, units.value)
        mean = (sample.prompt_tokens.value + output.value) / count
        longest = float(sample.longest + subject.job.generation.max_new_tokens)
        batch = self.pools.engine_rows
        capacity = gpu_named.memory if gpu_named else self.here.device_memory
        memory = forecast_memory(
            subject.job, plan.model, subject.config, (mean, longest), batch, capacity, per_gpu
        )
        done = subject.counts
        return Forecast(
            plan.manifest.rows,
            done.ok,
            sum(done.errors.values()),
            subject.pending.total,
            "windows" if subject.job.job == "annotate" else "rows",
            units,
            sample,
            output,
            basis,
            times,
            "GPU" if per_gpu else "machine",
            machines,
            options.price,
            cost,
            memory,
            self.pools,
            tuple(notes),
            plan.fingerprint,
            remembered,
        )

    def _output(self, sample: SampleResult) -> tuple[Estimate, str]:
        subject, units = self.subject, sample.units
        if not isinstance(subject.plan.task, TextTask):
            return Estimate.exact(0.0), "no text is generated"
        generation, questions = subject.job.generation, len(subject.plan.task.questions)
        errors = total(list(sample.errors.values()))
        good = max(0.0, units.value - errors.value) * questions
        most = generation.max_new_tokens
        if generation.min_new_tokens == most:
            spread = Estimate(good, good - (errors.high - errors.value) * questions,
                              good + (errors.value - errors.low) * questions)  # fmt: skip
            return spread.times(most), "every answer has as many tokens as the job says"
        finished = None
        if subject.counts.rows:
            place = subject.plan.output
            if subject.job.job == "annotate":
                place = storage.resolve(subject.job.output) / WINDOWS_FOLDER
            finished = answer_lengths(place, np.random.default_rng(_SEED))
        bases: list[tuple[Estimate, str]] = []
        if sample.output_tokens is not None and sample.engine is not None:
            answered = f"{sample.engine.rows:,} rows that were answered now"
            bases.append((sample.output_tokens, answered))
        if finished is not None:
            mean, error, rows = finished
            found = Estimate.of(units.value * mean, units.value * error)
            bases.append((found, f"the answers of {rows:,} finished rows"))
        if bases:
            return min(bases, key=lambda basis: basis[0].relative)
        return Estimate(good * most, good, good * most), "assumed: every answer has max_new_tokens"

    def _times(
        self, sample: SampleResult, output: Estimate, units: Estimate, gpu: Any
    ) -> StageTimes | None:
        options, subject = self.options, self.subject
        if options.rows_s is not None:
            return at_rate(units, options.rows_s)
        if options.tokens_s is not None:
            return at_rate(total([sample.prompt_tokens, output]), options.tokens_s)
        if gpu is not None:
            workers = subject.job.resources.prepare_workers
            cpus = workers if isinstance(workers, int) else None
            ranks, batch = subject.job.resources.tensor_parallel, 256
            return on_gpus(sample, output, subject.config, gpu, options.gpus, ranks, batch, cpus)
        library_s = self.sample.engine.library_s if self.sample.engine else 0.0
        return here(sample, output, self.pools, self.here.node.cpus, library_s)
