"""Softmax attention kernels by name, for batched and packed queries, keys and values.

- "sdpa" is torch's fused kernel.
- "eager" computes the formula step by step, and can return its weights.
- "flash" takes packed sequences of any lengths in one call, on a GPU.
- "products" is two batched matrix products, the fastest in bfloat16 on a CPU.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F

from mediamill.model.layers.flash import (
    Boundaries,
    flash_packed,
    missing_requirement,
    supports_windows,
)

AttentionName = Literal["sdpa", "eager", "flash", "products"]
# Scores that "products" holds at once: they fit the last-level cache and still fill the products.
SCORES = 2 * 1024 * 1024


def check_attention(name: str, device: torch.device, dtype: torch.dtype) -> AttentionName:
    """Returns the kernel called `name`, if it can run on `device` in `dtype`.

    name: "sdpa", "eager", "products" or "flash"; "flash_attention_2" is another name of "flash".
    Raises ValueError for any other name, and for "flash" where it is not available.
    """
    if name in ("sdpa", "eager", "products"):
        return name  # type: ignore[return-value]
    if name in ("flash", "flash_attention_2"):
        reason = missing_requirement(torch.device(device), dtype)
        if reason is not None:
            raise ValueError(f"attention {name!r} cannot be used: {reason}; use 'sdpa' instead")
        return "flash"
    raise ValueError(f"attention is {name!r}, expected 'sdpa', 'eager' or 'flash'")


def fastest_attention(device: torch.device, dtype: torch.dtype) -> AttentionName:
    """Returns "flash" where it can run, "products" in bfloat16 on a CPU, else "sdpa"."""
    if missing_requirement(device, dtype) is None:
        return "flash"
    return "products" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    mask: torch.Tensor | None = None,
    name: AttentionName = "sdpa",
    dropout: float = 0.0,
    weights: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v of q [B, H, Q, d] over k, v [B, Hkv, K, d] -> [B, H, Q, d].

    Query head i reads key-value head i // (H / Hkv). "eager" computes its softmax in float32 and
    is cheap to differentiate. "products" rounds its scores to the dtype.

    mask: bool, true where a key is visible; broadcasts to [B, H, Q, K].
    dropout: the share of weights that is dropped; with it, "products" falls back to "sdpa".
    weights: a list to which "eager" appends its weights [B, H, Q, K], after dropout.
    """
    groups = q.shape[1] // k.shape[1]
    if name == "products" and not dropout:
        return _products(q, k, v, causal, mask)
    if name != "eager":
        options: dict[str, bool] = {}
        if groups > 1 and q.shape[2] == 1 and mask is not None and mask.shape[1] == 1:
            # Query heads of one key-value head become its queries, so that no key is copied.
            grouped = q.reshape(q.shape[0], k.shape[1], groups, q.shape[3])
            out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, dropout_p=dropout)
            return out.reshape(q.shape)
        if groups > 1 and (mask is None or q.device.type == "cpu"):
            options = {"enable_gqa": True}
        elif groups > 1:  # with a mask, the fused kernels of a GPU do not support groups
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, **options
        )
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if causal:
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~visible, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities = F.dropout(scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype), dropout)
    if weights is not None:
        weights.append(probabilities)
    return probabilities @ v


def _products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, mask: torch.Tensor | None
) -> torch.Tensor:
    """`attention` by blocks of queries, whose scores stay in the processor's cache."""
    batch, heads, queries, dim = q.shape
    pairs, keys = batch * k.shape[1], k.shape[2]
    groups = heads // k.shape[1]
    q = q.reshape(pairs, groups, queries, dim)
    k, v = k.reshape(pairs, keys, dim).transpose(1, 2), v.reshape(pairs, keys, dim)
    block = min(queries, max(16, SCORES // (pairs * groups * keys)))
    outputs = []
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        # Causal queries see no key after the block's last query.
        seen = min(keys, stop) if causal else keys
        rows = q[:, :, start:stop].reshape(pairs, -1, dim)
        scores = q.new_empty(pairs, rows.shape[1], seen)
        torch.baddbmm(scores, rows, k[:, :, :seen], beta=0, alpha=dim**-0.5, out=scores)
        if causal:
            query = torch.arange(start, stop, device=q.device)[:, None]
            hidden = torch.arange(seen, device=q.device) > query
            scores.view(pairs, groups, stop - start, seen).add_(_additive_mask(hidden, q.dtype))
        if mask is not None:
            wide = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)[..., :seen]
            wide = wide[:, :, start:stop] if wide.shape[2] > 1 else wide
            scores.view(batch, heads, stop - start, seen).add_(_additive_mask(~wide, q.dtype))
        out = torch.bmm(scores.softmax(-1), v[:, :seen])
        outputs.append(out.view(batch, heads, stop - start, dim))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def dense_decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    name: AttentionName = "sdpa",
) -> torch.Tensor:
    """Attention of one new token per sequence: q [B, H, d] over keys and values [B, Hkv, S, d].

    Returns [B, H, d]. No key is copied; with "products" only if keys and values are slices along S
    of contiguous tensors.

    mask: of q's dtype, [B, 1, 1, S], added to the scores: 0 where a key is visible, else minus
        infinity; None: all are visible. Hidden values must be finite.
    """
    grouped = q.view(len(q), keys.shape[1], -1, q.shape[2])
    if name != "products":
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).flatten(1, 2)
    k, v = keys.flatten(0, 1), values.flatten(0, 1)
    flat = grouped.flatten(0, 1)
    scores = flat.new_empty(flat.shape[0], flat.shape[1], k.shape[1])
    torch.baddbmm(scores, flat, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5, out=scores)
    if mask is not None:
        scores.view(*grouped.shape[:3], -1).add_(mask)
    return torch.bmm(scores.softmax(-1), v).view(q.shape)


def _additive_mask(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Minus infinity where `hidden` is true, else 0."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
        hidden, float("-inf")
    )


def packed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Sequence[int],
    *,
    causal: bool,
    name: AttentionName = "sdpa",
    window: int | None = None,
    dropout: float = 0.0,
    weights: list[torch.Tensor] | None = None,
    boundaries: Boundaries | None = None,
) -> torch.Tensor:
    """Attention of each sequence over itself: q [T, H, d], k and v [T, Hkv, d] -> [T, H, d].

    Neighbors of equal length share a batched call; with "flash" all sequences share one. The flash
    kernel has no dropout: with it, "flash" falls back to "sdpa".

    lengths: of the sequences, in order; they sum to T.
    window: with `causal`, key j is visible to query i iff i - window < j <= i.
    dropout, weights: see `attention`.
    boundaries: of the same lengths, for "flash", so that many layers share them.
    """
    if name == "flash" and not dropout and (window is None or supports_windows()):
        boundaries = boundaries or Boundaries(lengths, q.device)
        return flash_packed(q, k, v, boundaries, causal=causal, window=window)
    outputs, start = [], 0
    for length, neighbors in groupby(lengths):
        count = sum(1 for _ in neighbors)
        tokens = slice(start, start + count * length)
        start = tokens.stop
        batch = (t[tokens].view(count, length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        narrow = window is not None and window < length
        out = attention(
            *batch,
            causal=causal and not narrow,
            mask=window_mask(length, length, window, q.device) if narrow else None,
            name=name,
            dropout=dropout,
            weights=weights,
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def window_mask(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which of `keys` tokens the last `queries` of them see, causally: bool [queries, keys]."""
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)
    visible = key <= query
    return visible if window is None else visible & (key > query - window)
