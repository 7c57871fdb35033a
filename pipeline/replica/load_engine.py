"""Loads the engine of a replica, in one process or several, and recognizes when it is broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mediamill.model.engine import Engine
from mediamill.model.tensor_parallel.tensor_parallel_engine import (
    BrokenRanksError,
    TensorParallelEngine,
)
from mediamill.pipeline.faults import BrokenEngineError


def load_engine(
    checkpoint: Path,
    device: str,
    ranks: int,
    threads: int,
    on_end: Callable[[BrokenEngineError], None],
    **options: Any,
) -> Engine:
    """Returns an engine on the GPUs that this process sees. Raises what `Engine.load` raises.

    ranks: its processes; this one is the first.
    threads: of each rank on a CPU.
    on_end: called in another thread when another rank has ended or hangs, since this one may then
        wait for it endlessly.
    options: of `Engine.load`.
    """
    if ranks == 1:
        return Engine.load(checkpoint, device, **options)
    return TensorParallelEngine.start(
        checkpoint,
        ranks,
        device,
        threads,
        on_death=lambda reason: on_end(_broken(reason)),
        **options,
    )


def refuse_broken(error: Exception) -> None:
    """Raises BrokenEngineError when an error means that this process can answer no more requests.

    After most CUDA errors every further call of the process fails too; running out of memory is
    not one of them.
    """
    if isinstance(error, BrokenRanksError):
        raise _broken(str(error)) from error
    if isinstance(error, torch.OutOfMemoryError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    elif "CUDA error" in str(error):
        raise BrokenEngineError(f"the GPU cannot be used any more: {error}") from error


def _broken(reason: str) -> BrokenEngineError:
    return BrokenEngineError(f"the engine has lost one of its ranks: {reason}")
