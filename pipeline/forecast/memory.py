"""Forecasts the memory of one copy of the model: weights, KV cache, and the host's."""

from dataclasses import dataclass

from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig
from mediamill.pipeline.checkpoint.checkpoint_hash import names_of
from mediamill.pipeline.decoding.memory_estimate import memory_bytes
from mediamill.pipeline.forecast.roofline import cache_bytes
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.job import JobConfig

_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
_USABLE = 0.9  # of a GPU's memory
_ACTIVATIONS = 2e9  # of the largest step; measured when the engine starts


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank of a replica.

    weights: of the checkpoint, in the job's number format. cache_row: keys and values of a row of
    mean length; cache_longest: of the longest. rows: of mean length that fit at once.
    capacity: of the device, or what is free on this machine.
    host: of one prepare worker, at most.
    problem: a sentence if it does not fit, else "".
    """

    weights: float
    cache_row: float
    cache_longest: float
    rows: int
    capacity: float
    host: float
    problem: str


def forecast_memory(
    job: JobConfig,
    model: Place,
    config: Qwen2VLConfig,
    tokens: tuple[float, float],
    batch: int,
    capacity: float,
    on_gpu: bool,
) -> Memory:
    """tokens: prompt and answer of a mean row, and of the longest. batch: rows at once.

    capacity: bytes of memory of one GPU, or of the machine.
    """
    stored = _BYTES.get(config.dtype or "bfloat16", 2)
    name = job.resources.dtype
    size = _BYTES.get(name, stored if on_gpu else 4)
    ranks = job.resources.tensor_parallel
    files = sum(
        int(model.fs.info((model / file).path)["size"])
        for file in names_of(model)
        if file.endswith(".safetensors")
    )
    weights = files / stored * size / ranks
    token = cache_bytes(config.text, size) / ranks
    mean, longest = tokens
    room = capacity * _USABLE - weights - (_ACTIVATIONS if on_gpu else 0)
    if not on_gpu:
        room /= 2
    rows = max(0, min(batch, int(room / max(1.0, token * mean))))
    problem = ""
    if room < token * longest:
        need = weights * ranks + token * ranks * longest
        problem = (
            f"does not fit: {weights / 1e9:.1f} GB of weights and {token * longest / 1e9:.1f} GB "
            f"of cache for the longest row, and {'a GPU' if on_gpu else 'this machine'} has "
            f"{capacity / 1e9:.1f} GB"
        )
        fitting = [n for n in (2, 4, 8) if need / n + _ACTIVATIONS < capacity * _USABLE]
        if on_gpu and fitting and fitting[0] > ranks:
            problem += f": resources.tensor_parallel={fitting[0]} would fit"
    return Memory(
        weights, token * mean, token * longest, rows, capacity, memory_bytes(job.limits, 2), problem
    )
