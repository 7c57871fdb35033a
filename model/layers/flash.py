"""Packed attention by torch's own flash kernels: one call for sequences of any lengths.

For NVIDIA GPUs in half precision. The kernels read grouped heads, windows and cached keys where the
installed torch supports them.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)

# The arguments that the function needs for reading pages.
PAGED = frozenset({"block_table", "seqused_k", "window_size", "enable_gqa"})


@functools.cache
def _kernel() -> tuple[Callable[..., Any] | None, frozenset[str]]:
    """Returns torch's function, or None, and the names of its arguments."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, frozenset()
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def missing_requirement(device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns why flash attention cannot run, as a clause for a message; None if it can."""
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, and the device is {device.type}"
    if dtype not in HALF:
        return f"it needs float16 or bfloat16, and the dtype is {str(dtype).removeprefix('torch.')}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"it needs a GPU of compute capability 8.0 or later, and this one has {capability}"
    if _kernel()[0] is None:
        return f"it needs a torch with torch.nn.attention.varlen, and torch is {torch.__version__}"
    return None


def supports_windows() -> bool:
    """Returns whether the kernel of this torch supports a sliding window."""
    return "window_size" in _kernel()[1]


def supports_cached_keys() -> bool:
    """Returns whether the kernel of this torch reads the filled parts of cache rows in place."""
    return {"seqused_k", "window_size", "enable_gqa"} <= _kernel()[1]


@functools.cache
def supports_pages(device: torch.device, dtype: torch.dtype, head_dim: int, page_size: int) -> bool:
    """Returns whether the kernel of this torch reads keys and values from pages of that size.

    It is tried once on a few numbers: in some builds the kernel refuses arguments that its
    signature has, and the supported page sizes depend on the active flash kernel.
    """
    if missing_requirement(device, dtype) is not None or PAGED - _kernel()[1]:
        return False
    generator = torch.Generator().manual_seed(0)
    page_shape = (4, page_size, 2, head_dim)
    q, keys, values = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((2, 4, head_dim), page_shape, page_shape)
    )
    table = torch.tensor([[2, 1], [3, 0]], dtype=torch.int32, device=device)
    lengths = (page_size + 3, 2)
    filled = torch.tensor(lengths, dtype=torch.int32, device=device)
    try:
        for window in (None, 2):
            result = flash_paged(q, keys, values, table, filled, window, lengths[0])
            for row, length in enumerate(lengths):
                visible = slice(0 if window is None else max(0, length - window), length)
                k, v = (
                    pages[table[row].long()].flatten(0, 1)[visible].float().repeat_interleave(2, 1)
                    for pages in (keys, values)
                )
                scores = torch.einsum("hd,khd->hk", q[row].float(), k) * head_dim**-0.5
                expected = torch.einsum("hk,khd->hd", scores.softmax(-1), v)
                if not torch.allclose(result[row].float(), expected, atol=0.03, rtol=0.03):
                    return False
    except (RuntimeError, TypeError, ValueError):
        return False
    return True


class Boundaries:
    """Where packed sequences begin: cumulative lengths, int32 [n + 1], and the longest length."""

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
    """Attention of one new token per sequence over its row of a cache: q [B, H, d] -> [B, H, d].

    keys, values: [B, capacity, Hkv, d], contiguous.
    filled: int32 [B], keys in each row, the new one included.
    """
    batch, capacity = keys.shape[:2]
    rows = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
    bounds = (rows, rows * capacity, 1, capacity)
    # The only query is at the end of its keys, so "causal" hides nothing.
    return _call(
        q,
        keys.flatten(0, 1),
        values.flatten(0, 1),
        bounds,
        window is not None,
        window,
        {"seqused_k": filled},
    )


def flash_paged(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    filled: torch.Tensor,
    window: int | None,
    longest: int,
) -> torch.Tensor:
    """Attention of one new token per sequence over pages.

    The arguments are those of `paged_decode` in model/engine_core/paged_attention.py.
    """
    kernel, _ = _kernel()
    assert kernel is not None, "checked by choose_kernel"
    rows = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
    out: torch.Tensor = kernel(
        q.contiguous(),
        keys,
        values,
        rows,
        None,
        1,
        longest,
        # The only query is at the end of its keys: no later key has to be hidden.
        window_size=(-1, -1) if window is None else (window - 1, 0),
        enable_gqa=q.shape[1] != keys.shape[2],
        seqused_k=filled,
        block_table=block_table,
    )
    return out


def _call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor, int, int],
    causal: bool,
    window: int | None,
    options: dict[str, object],
) -> torch.Tensor:
    """bounds: cumulative lengths of queries and keys, and the longest of each."""
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
    out: torch.Tensor = kernel(q.contiguous(), k.contiguous(), v.contiguous(), *bounds, **options)
    return out
