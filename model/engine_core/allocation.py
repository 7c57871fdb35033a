"""A sequence's part of a KV cache, and the tensors that the caches are made of."""

from dataclasses import dataclass, field

import numpy as np
import torch

from mediamill.model.layers.shapes import TextConfig

_ALIGNMENT = 64  # bytes of a cache line


@dataclass
class Allocation:
    """The part of a KV cache that one sequence has.

    tokens: number of tokens that it has space for.
    pages: its pages in a paged cache, in order; in a contiguous cache those of its cached prefix.
    reused: tokens at the beginning that were cached already.
    used: tokens that may have been written; kept up to date by the sequence.
    size_class, slot: its place in a contiguous cache; -1 in a paged one.
    """

    tokens: int
    pages: list[int] = field(default_factory=list)
    reused: int = 0
    used: int = 0
    size_class: int = -1
    slot: int = -1


# What a prefill writes: the allocation, the index in it of the first new token, and the new tokens
# among those of the packed call: start, end.
KVWrite = tuple[Allocation, int, int, int]


def bytes_per_token(config: TextConfig, dtype: torch.dtype) -> int:
    """Returns the bytes of one token's keys and values over all layers."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * width * dtype.itemsize


def layer_tensors(
    config: TextConfig,
    pages: int,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    heads_first: bool = False,
) -> list[torch.Tensor]:
    """Returns zeros [pages, size, Hkv, d] for each layer; [pages, Hkv, size, d] if `heads_first`.

    Unwritten entries must be finite: a masked token has weight 0, and 0 * NaN is NaN. On a CPU the
    operating system provides memory only as it is written.
    """
    heads = config.num_key_value_heads
    shape = (pages, *((heads, size) if heads_first else (size, heads)), config.head_dim)
    return [_zeros(shape, dtype, device) for _ in range(config.num_hidden_layers)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    # torch.zeros writes its zeros; numpy calls calloc, which gets zeroed pages from the system.
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(shape)
