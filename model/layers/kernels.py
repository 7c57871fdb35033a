"""Softmax attention by name: the computation alone, without caches or layers.

Turns queries, keys and values, batched or packed, into attended values. "sdpa" is torch's fused
kernel, "eager" spells the formula out and can show its weights, "flash" takes packed sequences of
any lengths in one call on a GPU, "products" is two batched products, the fastest in bfloat16 on a
CPU.
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
# Scores that "products" holds at once: few enough for the last cache, enough for large products.
SCORES = 2 * 1024 * 1024


def check_attention(name: str, device: torch.device, dtype: torch.dtype) -> AttentionName:
    """The kernel of that name, if it can run on `device` in `dtype`.

    name: "sdpa", "eager", "products" or "flash"; "flash_attention_2" is another name of "flash".
        Raises ValueError for any other name, and for "flash" where it is not available.
    """
    if name == "sdpa" or name == "eager" or name == "products":
        return name  # type: ignore[return-value]
    if name in ("flash", "flash_attention_2"):
        lack = missing_requirement(torch.device(device), dtype)
        if lack is not None:
            raise ValueError(f"attention {name!r} cannot be used: {lack}; use 'sdpa' instead")
        return "flash"
    raise ValueError(f"attention is {name!r}, expected 'sdpa', 'eager' or 'flash'")


def fastest_attention(device: torch.device, dtype: torch.dtype) -> AttentionName:
    """Returns what "auto" stands for: "flash" where it can run, "products" in bfloat16 on a CPU,
    else "sdpa".
    """
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
    """Softmax attention of q [B, H, Q, d] over k, v [B, Hkv, K, d]; scale 1/sqrt(d). -> [B, H, Q,
    d].

    Query head i reads key-value head i // (H / Hkv). `mask` is boolean, true where a key is
    visible, and broadcasts to [B, H, Q, K]. "eager" keeps its softmax in float32, is cheap to
    differentiate, and appends its weights [B, H, Q, K] (after dropout) to `weights`. "products"
    rounds its scores to the dtype; with dropout it is "sdpa". dropout: the share of weights that is
    dropped.
    """
    groups = q.shape[1] // k.shape[1]
    if name == "products" and not dropout:
        return _products(q, k, v, causal, mask)
    if name != "eager":
        options: dict[str, bool] = {}
        if groups > 1 and q.shape[2] == 1 and mask is not None and mask.shape[1] == 1:
            # The query heads of one key-value head as its queries: no key is copied.
            folded = q.reshape(q.shape[0], k.shape[1], groups, q.shape[3])
            out = F.scaled_dot_product_attention(folded, k, v, attn_mask=mask, dropout_p=dropout)
            return out.reshape(q.shape)
        if groups > 1 and (mask is None or q.device.type == "cpu"):
            options = {"enable_gqa": True}
        elif groups > 1:  # with a mask, the fused kernels of a GPU know no groups
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
    shares = F.dropout(scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype), dropout)
    if weights is not None:
        weights.append(shares)
    return shares @ v


def _products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, mask: torch.Tensor | None
) -> torch.Tensor:
    """As `attention`, a block of queries at a time, so that the scores stay in the cache."""
    batch, heads, queries, dim = q.shape
    pairs, keys = batch * k.shape[1], k.shape[2]
    groups = heads // k.shape[1]
    q = q.reshape(pairs, groups, queries, dim)
    k, v = k.reshape(pairs, keys, dim).transpose(1, 2), v.reshape(pairs, keys, dim)
    block = min(queries, max(16, SCORES // (pairs * groups * keys)))
    pieces = []
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        # The causal ones see no key beyond the block's own.
        seen = min(keys, stop) if causal else keys
        rows = q[:, :, start:stop].reshape(pairs, -1, dim)
        scores = q.new_empty(pairs, rows.shape[1], seen)
        torch.baddbmm(scores, rows, k[:, :, :seen], beta=0, alpha=dim**-0.5, out=scores)
        if causal:
            at = torch.arange(start, stop, device=q.device)[:, None]
            hidden = torch.arange(seen, device=q.device) > at
            scores.view(pairs, groups, stop - start, seen).add_(_added(hidden, q.dtype))
        if mask is not None:
            wide = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)[..., :seen]
            wide = wide[:, :, start:stop] if wide.shape[2] > 1 else wide
            grouped = scores.view(batch, heads, stop - start, seen)
            grouped.add_(_added(~wide, q.dtype))
        out = torch.bmm(scores.softmax(-1), v[:, :seen])
        pieces.append(out.view(batch, heads, stop - start, dim))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def dense_decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    name: AttentionName = "sdpa",
) -> torch.Tensor:
    """Attention of one new token per row: q [B, H, d] over keys and values [B, Hkv, S, d] -> [B,
    H, d].

    mask: of q's dtype, [B, 1, 1, S], added to the scores: 0 where a key is visible, else minus
        infinity; None: all are. Hidden values must be finite.
    The query heads of one key-value head are taken as its queries, so no key is copied; nor is one
    by "products" where each row's [Hkv, S, d] lies in one piece but for the last tokens.
    """
    folded = q.view(len(q), keys.shape[1], -1, q.shape[2])
    if name != "products":
        return F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask).flatten(1, 2)
    k, v = keys.flatten(0, 1), values.flatten(0, 1)
    flat = folded.flatten(0, 1)
    scores = flat.new_empty(flat.shape[0], flat.shape[1], k.shape[1])
    torch.baddbmm(scores, flat, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5, out=scores)
    if mask is not None:
        scores.view(*folded.shape[:3], -1).add_(mask)
    return torch.bmm(scores.softmax(-1), v).view(q.shape)


def _added(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What hides keys when it is added to scores: 0 or minus infinity."""
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

    lengths: of the sequences, in order; they sum to T. boundaries: of the same lengths, for
        "flash", so that many layers share them. window: with `causal`, key j is visible to query i
        iff i - window < j <= i. weights: see `attention`.
    Neighbours of equal length go through one batched call; with "flash", all go through one. The
    flash kernel knows no dropout: with it, "flash" falls back to "sdpa".
    """
    if name == "flash" and not dropout and (window is None or supports_windows()):
        edges = boundaries or Boundaries(lengths, q.device)
        return flash_packed(q, k, v, edges, causal=causal, window=window)
    pieces, start = [], 0
    for length, run in groupby(lengths):
        count = sum(1 for _ in run)
        rows = slice(start, start + count * length)
        start = rows.stop
        batch = (t[rows].view(count, length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        narrow = window is not None and window < length
        out = attention(
            *batch,
            causal=causal and not narrow,
            mask=window_mask(length, length, window, q.device) if narrow else None,
            name=name,
            dropout=dropout,
            weights=weights,
        )
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def window_mask(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """What the last `queries` of `keys` tokens see of them: bool [queries, keys]."""
    at = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)
    visible = key <= at
    return visible if window is None else visible & (key > at - window)
