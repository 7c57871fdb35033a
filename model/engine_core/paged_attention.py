"""Decode attention over a paged KV cache: one new token per sequence, by one of three kernels.

"gather" copies the pages of each sequence together; it runs on any device, and is the reference for
the others. "varlen" is torch's own flash kernel, "triton" is ours.
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
    """Returns the fastest kernel that can run: "varlen", then "triton", then "gather"."""
    if supports_pages(device, dtype, head_dim, page_size):
        return "varlen"
    triton = _triton_decode()
    if triton is not None and triton.missing(device, dtype, head_dim) is None:
        return "triton"
    return "gather"


@functools.cache
def _triton_decode() -> ModuleType | None:
    """Returns the module of our kernels, or None if triton is not installed."""
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
    seq_lens: torch.Tensor,
    window: int | None,
    kernel: PagedKernel,
) -> torch.Tensor:
    """Softmax attention of q [B, H, d] over the pages of each sequence, scale 1/sqrt(d); returns
    [B, H, d].

    keys, values: [pages, page_size, Hkv, d], contiguous, of q's dtype. Query head i reads head
        i // (H / Hkv). Slots after a sequence's tokens do not affect the result, even if NaN.
    block_table: int32 [B, max_pages], the pages of each sequence in order.
    seq_lens: int32 [B], tokens per sequence, the new one included, at least 1.
    window: attend only to the last `window` tokens; None: to all.
    """
    # The true maximum is on the device, and reading it would wait for the device.
    max_seq_len = block_table.shape[1] * keys.shape[1]
    if kernel == "varlen":
        return flash_paged(q, keys, values, block_table, seq_lens, window, max_seq_len)
    if kernel == "triton":
        triton = _triton_decode()
        assert triton is not None, "checked by choose_kernel"
        out: torch.Tensor = triton.paged_decode(
            q, keys, values, block_table, seq_lens, window, max_seq_len
        )
        return out
    return _gather(q, keys, values, block_table, seq_lens, window)


def _gather(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    index = torch.arange(block_table.shape[1] * keys.shape[1], device=q.device)
    visible = index < seq_lens[:, None]
    if window is not None:
        visible = visible & (index >= seq_lens[:, None] - window)
    # Masked tokens enter the products with weight 0, and 0 * NaN is NaN: they are set to 0.
    k, v = (
        pages[block_table].flatten(1, 2).masked_fill(~visible[:, :, None, None], 0)
        for pages in (keys, values)
    )
    k, v, mask = k.transpose(1, 2), v.transpose(1, 2), visible[:, None, None]
    return attention(q[:, :, None], k, v, causal=False, mask=mask)[:, :, 0]
