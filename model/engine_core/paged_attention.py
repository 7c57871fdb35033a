"""Attention of one new token per row over keys and values that lie in pages.

Turns queries and a paged cache into attended values, by one of three kernels: "gather" copies each
row's pages together (any device; what the others are held against), "varlen" is torch's own flash
kernel, "triton" is ours. It does not know how pages are handed out.
"""

import functools
from types import ModuleType
from typing import Literal

import torch

from mediamill.model.layers.flash import flash_paged, supports_pages
from mediamill.model.layers.kernels import attention

PagedKernel = Literal["gather", "triton", "varlen"]


def choose_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, page_size: int
) -> PagedKernel:
    """The fastest kernel that can run here: "varlen", then "triton", then "gather"."""
    if supports_pages(device, dtype, head_dim, page_size):
        return "varlen"
    ours = _triton_decode()
    if ours is not None and ours.missing(device, dtype, head_dim) is None:
        return "triton"
    return "gather"


@functools.cache
def _triton_decode() -> ModuleType | None:
    """Our kernels, or None where triton is not installed."""
    try:
        from mediamill.model.engine_core import triton_decode
    except ImportError:
        return None
    return triton_decode


def paged_decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    filled: torch.Tensor,
    window: int | None,
    kernel: PagedKernel,
    longest: int | None = None,
) -> torch.Tensor:
    """Softmax attention of q [B, H, d] over each row's pages, scale 1/sqrt(d) -> [B, H, d].

    keys, values: [pages, page_size, Hkv, d], contiguous, of q's dtype; query head i reads head
        i // (H / Hkv). Nothing beyond a row's tokens is read into the result, NaN neither.
    block_table: int32 [B, max_pages], the pages of each row in order. filled: int32 [B], tokens
        per row, the new one included, at least 1.
    window: a row sees only its last `window` tokens; None: all.
    longest: a bound on `filled` that the caller knows without asking the device; None: all that
        the table can hold.
    """
    page_size = keys.shape[1]
    held = block_table.shape[1] * page_size
    longest = held if longest is None else min(longest, held)
    if kernel == "varlen":
        return flash_paged(q, keys, values, block_table, filled, window, longest)
    if kernel == "triton":
        ours = _triton_decode()
        assert ours is not None, "checked by choose_kernel"
        out: torch.Tensor = ours.paged_decode(q, keys, values, block_table, filled, window, longest)
        return out
    return _gather(q, keys, values, block_table, filled, window, longest)


def _gather(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    filled: torch.Tensor,
    window: int | None,
    longest: int,
) -> torch.Tensor:
    table = block_table[:, : -(-longest // keys.shape[1])]
    places = torch.arange(longest, device=q.device)
    visible = places < filled[:, None]
    if window is not None:
        visible = visible & (places >= filled[:, None] - window)
    # Hidden tokens enter the products with weight 0, and 0 * NaN is NaN: they are made 0.
    k, v = (
        pages[table].flatten(1, 2)[:, :longest].masked_fill(~visible[:, :, None, None], 0)
        for pages in (keys, values)
    )
    out = attention(
        q[:, :, None],
        k.transpose(1, 2),
        v.transpose(1, 2),
        causal=False,
        mask=visible[:, None, None],
    )
    return out[:, :, 0]
