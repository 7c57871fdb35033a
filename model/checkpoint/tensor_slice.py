"""The part of a stored tensor that one tensor-parallel rank holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSlice:
    """The spans [start, stop) of a tensor along dimension `dim`, concatenated."""

    dim: int
    spans: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.spans)
