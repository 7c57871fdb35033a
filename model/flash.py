"""Packed attention by torch's own flash kernels: one call for sequences of any lengths.

Turns q, k, v of packed sequences into their attention on an NVIDIA GPU in half precision. It adapts
to what the installed torch offers (grouped heads, windows and cached keys came one after the
other) and does not know caches or layers.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)


@functools.cache
def _kernel() -> tuple[Callable[..., Any] | None, frozenset[str]]:
    """The function of torch, and the names of its arguments."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, frozenset()
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """What flash attention lacks here, as the end of a sentence; None if it can run."""
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, and the device is {device.type}"
    if dtype not in HALF:
        return f"it needs float16 or bfloat16, and the dtype is {str(dtype).removeprefix('torch.')}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"it needs a GPU of compute capability 8.0 or later, and this one has {found}"
    if _kernel()[0] is None:
        return f"it needs a torch with torch.nn.attention.varlen, and torch is {torch.__version__}"
    return None


def does_windows() -> bool:
    """Whether the kernel of this torch takes a sliding window."""
    return "window_size" in _kernel()[1]


def does_cached_keys() -> bool:
    """Whether the kernel of this torch reads only the filled part of each row of a cache, without
    a copy of it for grouped heads.
    """
    return {"seqused_k", "window_size", "enable_gqa"} <= _kernel()[1]


class Boundaries:
    """Where packed sequences begin: int32 [n + 1] on the device, and the longest of them."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        self.starts = starts.to(device, non_blocking=True)
        self.longest = max(lengths)


def flash_packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    boundaries: Boundaries,
    *,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """Attention of each sequence over itself: q [T, H, d], k and v [T, Hkv, d] -> [T, H, d].

    window: with `causal`, how many keys back a query sees, itself included.
    """
    starts, longest = boundaries.starts, boundaries.longest
    return _call(q, k, v, (starts, starts, longest, longest), causal, window, {})


def flash_cached(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    filled: torch.Tensor,
    window: int | None = None,
) -> torch.Tensor:
    """Attention of one new token per row over its row of a cache: q [B, H, d], keys and values
    [B, capacity, Hkv, d] contiguous, filled int32 [B] keys per row, the new one included ->
    [B, H, d].
    """
    batch, capacity = keys.shape[:2]
    rows = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
    places = (rows, rows * capacity, 1, capacity)
    # The only query stands at the end of its keys, so "causal" hides nothing.
    return _call(
        q,
        keys.flatten(0, 1),
        values.flatten(0, 1),
        places,
        window is not None,
        window,
        {"seqused_k": filled},
    )


def _call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    places: tuple[torch.Tensor, torch.Tensor, int, int],
    causal: bool,
    window: int | None,
    options: dict[str, object],
) -> torch.Tensor:
    kernel, names = _kernel()
    assert kernel is not None, "checked by check_attention"
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        if "enable_gqa" in names:
            options = options | {"enable_gqa": True}
        else:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if "window_size" in names:
        before = -1 if window is None else window - 1
        options = options | {"window_size": (before, 0 if causal else -1)}
    else:
        options = options | {"is_causal": causal}
    out: torch.Tensor = kernel(q.contiguous(), k.contiguous(), v.contiguous(), *places, **options)
    return out
