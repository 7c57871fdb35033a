"""Forecasts the seconds of a job's stages: on this machine as measured, on a GPU from its peaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig
from mediamill.pipeline.forecast import roofline
from mediamill.pipeline.forecast.estimates import Estimate, total
from mediamill.pipeline.forecast.roofline import Ceilings
from mediamill.pipeline.forecast.sample import SampleResult
from mediamill.pipeline.ray_cluster.pool_sizes import Pools
from mediamill.schemas.errors import JobError
from mediamill.schemas.nearest import nearest

STAGES = ("fetch", "prepare", "vision and prefill", "decode", "write")

# The start of a job: Ray, its processes, and their libraries. With the seconds that this machine
# takes to import the engine's libraries, which grow with its load.
_START_S, _START_PER_IMPORT = 10.0, 5.5
_CPU_ROW_S = 0.006  # of Ray, the coordinator and the writes, for each row
_MEASURED_SPREAD = 0.2  # of times that were measured here: other work on the machine
_DECODERS = 2  # processes of one prepare worker
# Of the speed that follows from a GPU's peak figures. Published figures of other engines reach
# 0.27; 0.7 is the target of this one (see docs/plan.md).
_REACHED, _LEAST_REACHED, _MOST_REACHED = 0.45, 0.27, 0.7
WRITE_ROWS_S = 20_000.0


@dataclass(frozen=True)
class Gpu:
    """The peak figures of a GPU: dense bfloat16 FLOP/s, bytes/s and bytes of its memory."""

    name: str
    flops: float
    bandwidth: float
    memory: float


# From the makers' data sheets. No speed of this engine has been measured on any of them yet: a
# measured rate belongs into docs/gpu.md first.
GPUS = (
    Gpu("A10", 125e12, 600e9, 24e9),
    Gpu("A100-40GB", 312e12, 1555e9, 40e9),
    Gpu("A100-80GB", 312e12, 2039e9, 80e9),
    Gpu("B200", 2250e12, 8000e9, 180e9),
    Gpu("H100", 989e12, 3350e9, 80e9),
    Gpu("H200", 989e12, 4800e9, 141e9),
    Gpu("L4", 121e12, 300e9, 24e9),
    Gpu("L40S", 362e12, 864e9, 48e9),
    Gpu("RTX4090", 165e12, 1008e9, 24e9),
)


def find_gpu(name: str) -> Gpu:
    """Returns the GPU of that name. Raises JobError."""
    plain = {gpu.name.casefold().replace("-", ""): gpu for gpu in GPUS}
    gpu = plain.get(name.casefold().replace("-", "").replace(" ", ""))
    if gpu is None:
        names = [gpu.name for gpu in GPUS]
        guess = nearest(name, names)
        hint = f"did you mean '{guess}'?" if guess else f"expected one of {', '.join(names)}"
        raise JobError(f"--gpu: found '{name}', {hint}")
    return gpu


@dataclass(frozen=True)
class StageTimes:
    """Seconds that each stage needs alone for all rows, and those of the whole job.

    stages: by name, in their order. start_s: before the first row. basis: how they were found:
    measured, estimate or given. binds: the stage that takes longest.
    workers_per_engine: prepare workers, of two CPUs each, that keep pace with one engine.
    """

    stages: Mapping[str, Estimate]
    start_s: Estimate
    seconds: Estimate
    basis: str
    binds: str
    workers_per_engine: float


def here(
    sample: SampleResult, output: Estimate, pools: Pools, cpus: float, library_s: float
) -> StageTimes | None:
    """Returns the times on this machine; None if the engine did not run here.

    library_s: to import the engine's libraries.
    """
    engine = sample.engine
    if engine is None or not engine.rows:
        return None
    visual, prompts, outputs = sample.visual_tokens, sample.prompt_tokens, output
    replicas = max(1, pools.replicas)
    prefill = total(
        [
            _per(engine.vision_s, engine.visual_tokens, visual),
            _per(engine.prefill_s, engine.prompt_tokens, prompts),
        ]
    ).times(1 / replicas)
    decode = _per(engine.decode_s, engine.output_tokens, outputs).times(1 / replicas)
    decode = total([decode, sample.units.times(engine.other_s / engine.rows / replicas)])
    stages = {
        STAGES[0]: sample.fetch_s.times(1 / pools.prepare_workers),
        STAGES[1]: sample.prepare_s.times(1 / pools.prepare_workers),
        STAGES[2]: prefill,
        STAGES[3]: decode,
        STAGES[4]: sample.units.times(1 / WRITE_ROWS_S),
    }
    stages = {name: one.with_spread(_MEASURED_SPREAD) for name, one in stages.items()}
    engine_s = total([stages[STAGES[2]], stages[STAGES[3]]])
    # One machine: all stages share its CPUs, and one process's waits are another's time.
    cpu_s = total(
        [
            sample.prepare_s.times(_DECODERS if cpus > _DECODERS else 1.0),
            engine_s.times(replicas * (1 if pools.replica_gpus else pools.engine_threads)),
            sample.units.times(_CPU_ROW_S),
        ]
    ).times(1 / cpus)
    loads = engine.load_s - library_s
    start = Estimate.exact(_START_S + _START_PER_IMPORT * library_s + loads).with_spread(0.3)
    flow = max((stages[STAGES[0]], stages[STAGES[1]], engine_s, cpu_s), key=lambda one: one.value)
    return _times(stages, start, flow, "measured here", sample, replicas)


def on_gpus(
    sample: SampleResult, output: Estimate, config: Qwen2VLConfig, gpu: Gpu, count: int,
    ranks: int, batch: int, prepare_cpus: int | None,
) -> StageTimes:  # fmt: skip
    """Returns the times on so many GPUs of that kind, from its peak figures."""
    top = Ceilings(gpu.flops * _REACHED * ranks, gpu.bandwidth * _REACHED * ranks)
    replicas = max(1, count // ranks)
    rows = sample.units.value
    visual = sample.visual_tokens.value / max(1.0, sample.units.value)
    prompt = sample.prompt_tokens.value / max(1.0, sample.units.value)
    answer = output.value / max(1.0, sample.units.value)
    merge = config.vision.spatial_merge_size
    side = max(merge, round((visual * merge**2) ** 0.5))
    vision = roofline.vision_flops(config, [(1, side, side)]) if visual else 0.0
    prefill = roofline.prefill_flops(config.text, [round(prompt)])
    context = prompt + answer / 2
    step = roofline.decode_seconds(config.text, batch, context, top)
    least, most = _REACHED / _MOST_REACHED, _REACHED / _LEAST_REACHED

    def estimated(seconds: float) -> Estimate:
        return Estimate(seconds, seconds * least, seconds * most)

    cpus = prepare_cpus or max(1, 8 * replicas)
    stages = {
        STAGES[0]: sample.fetch_s.times(1 / cpus).with_spread(0.5),
        STAGES[1]: sample.prepare_s.times(1 / cpus).with_spread(0.5),
        STAGES[2]: estimated(rows * (vision + prefill) / top.flops / replicas),
        STAGES[3]: estimated(rows * answer * step / batch / replicas),
        STAGES[4]: sample.units.times(1 / WRITE_ROWS_S),
    }
    engine = stages[STAGES[2]], stages[STAGES[3]]
    engine_s = Estimate(
        sum(e.value for e in engine), sum(e.low for e in engine), sum(e.high for e in engine)
    )
    flow = max((stages[STAGES[0]], stages[STAGES[1]], engine_s), key=lambda one: one.value)
    start = Estimate(60.0, 30.0, 180.0)
    basis = f"estimate from peak figures of {gpu.name}, not measured"
    return _times(stages, start, flow, basis, sample, replicas)


def at_rate(work: Estimate, rate: float) -> StageTimes:
    """Returns the times of a job that does so much of its work a second, as the user says."""
    seconds = work.times(1 / rate)
    return StageTimes({}, Estimate.exact(0.0), seconds, "the rate that was given", "", 0.0)


def _times(
    stages: Mapping[str, Estimate],
    start: Estimate,
    flow: Estimate,
    basis: str,
    sample: SampleResult,
    replicas: int,
) -> StageTimes:
    engine = stages[STAGES[2]].value + stages[STAGES[3]].value
    binds = max(stages, key=lambda name: stages[name].value)
    seconds = Estimate(
        start.value + flow.value, start.low + flow.low, start.high + flow.high
    )  # the load that delays one delays the other
    workers = sample.prepare_s.value / (engine * replicas) if engine else 0.0
    return StageTimes(stages, start, seconds, basis, binds, workers)


def _per(seconds: float, done: int, wanted: Estimate) -> Estimate:
    return wanted.times(seconds / done) if done else Estimate.exact(0.0)


def names_of(gpus: Sequence[Gpu] = GPUS) -> str:
    """Returns the names of the GPUs, for a help text."""
    return ", ".join(gpu.name for gpu in gpus)
