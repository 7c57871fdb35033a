"""What one row holds of a key-value cache, and the plain tensors that caches are made of.

It does not know attention or requests.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from mediamill.model.layers.shapes import TextConfig

_ALIGNMENT = 64  # bytes of a cache line


@dataclass
class Allocation:
    """The place of one row.

    tokens: for how many it is reserved. pages: its pages in a paged cache, in order; else those
        that hold the beginning it shares. reused: tokens at its beginning that were there already.
    used: tokens that may have been written; its owner counts on. shelf, slot: where it stands in a
        cache of shelves.
    """

    tokens: int
    pages: list[int] = field(default_factory=list)
    reused: int = 0
    used: int = 0
    shelf: int = -1
    slot: int = -1


def bytes_per_token(config: TextConfig, dtype: torch.dtype) -> int:
    """What the keys and values of one token take over all layers."""
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
    """Zeros [pages, size, Hkv, d], or [pages, Hkv, size, d], for each layer: what is never written
    must be finite, because a hidden token's weight is 0, and 0 * NaN is NaN.

    On a CPU memory is taken from the system only as it is touched.
    """
    heads = config.num_key_value_heads
    shape = (pages, *((heads, size) if heads_first else (size, heads)), config.head_dim)
    if device.type != "cpu":
        return [
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)
        ]
    return [_untouched(shape, dtype) for _ in range(config.num_hidden_layers)]


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    # torch.zeros writes its zeros; calloc, which numpy calls, gets them from the system unwritten.
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(shape)
