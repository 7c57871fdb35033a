"""Which part of a stored tensor one tensor-parallel rank holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSlice:
    """The indices from `start` up to `stop` of a tensor along its dimension `dim`."""

    dim: int
    start: int
    stop: int
