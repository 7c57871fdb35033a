"""Attention over packed sequences, and the dense cache of keys and values.

Everything is packed: tokens of many sequences stand one after the other, with their lengths beside
them, and no token attends outside its own sequence. It does not know layers, positions or weights.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

AttentionName = Literal["sdpa", "eager"]


class Attend(Protocol):
    """What a decoder layer calls: q [T, H, d], k and v [T, Hkv, d] of layer `layer` -> [T, H,
    d].
    """

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor: ...


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    mask: torch.Tensor | None = None,
    name: AttentionName = "sdpa",
) -> torch.Tensor:
    """Softmax attention of q [B, H, Q, d] over k, v [B, Hkv, K, d]; scale 1/sqrt(d). -> [B, H, Q,
    d].

    Query head i reads key-value head i // (H / Hkv). `mask` is boolean, true where a key is
    visible, and broadcasts to [B, H, Q, K]. "eager" keeps its softmax in float32 and is cheap to
    differentiate.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if name == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    weights = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if causal:
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        weights = weights.masked_fill(~visible, float("-inf"))
    if mask is not None:
        weights = weights.masked_fill(~mask, float("-inf"))
    out: torch.Tensor = weights.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v
    return out


def packed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Sequence[int],
    *,
    causal: bool,
    name: AttentionName = "sdpa",
) -> torch.Tensor:
    """Attention of each sequence over itself: q [T, H, d], k and v [T, Hkv, d] -> [T, H, d].

    lengths: of the sequences, in order; they sum to T.
    Neighbours of equal length go through one batched call.
    """
    pieces, start = [], 0
    for length, run in groupby(lengths):
        count = sum(1 for _ in run)
        rows = slice(start, start + count * length)
        start = rows.stop
        batch = (t[rows].view(count, length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        pieces.append(attention(*batch, causal=causal, name=name).transpose(1, 2).flatten(0, 1))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class PackedCausal:
    """Attend for a forward pass or a prefill: each sequence over itself, causally.

    With a cache, the keys and values of sequence i are stored in its row i.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        name: AttentionName = "sdpa",
        cache: "KeyValueCache | None" = None,
    ) -> None:
        self.lengths = list(lengths)
        self.name: AttentionName = name
        self.cache = cache

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        if self.cache is not None:
            start = 0
            for row, length in enumerate(self.lengths):
                self.cache.keys[layer][row, :, :length] = k[start : start + length].transpose(0, 1)
                self.cache.values[layer][row, :, :length] = v[start : start + length].transpose(
                    0, 1
                )
                start += length
        return packed_attention(q, k, v, self.lengths, causal=True, name=self.name)


class KeyValueCache:
    """Keys and values of a batch of sequences, dense: per layer [B, Hkv, capacity, d].

    lengths: int64 [B], tokens stored per sequence; its owner (the engine) advances it.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (batch, heads, capacity, dim)
        # Zeros, not empty: masked slots enter a product with weight 0, and 0 * NaN is NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only the sequences `rows` (int64 indices), in that order."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.lengths = self.lengths[rows]


class DecodeStep:
    """Attend for one decode step: one new token per sequence, over all that is cached and
    itself.
    """

    def __init__(self, cache: KeyValueCache, name: AttentionName = "sdpa") -> None:
        self.cache = cache
        self.name: AttentionName = name
        self.slots = cache.lengths
        self.span = int(cache.lengths.max()) + 1
        self.rows = torch.arange(len(self.slots), device=self.slots.device)
        self.mask = (torch.arange(self.span, device=self.slots.device) <= self.slots[:, None])[
            :, None, None
        ]

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows, :, self.slots] = k
        values[self.rows, :, self.slots] = v
        out = attention(
            q[:, :, None],
            keys[:, :, : self.span],
            values[:, :, : self.span],
            causal=False,
            mask=self.mask,
            name=self.name,
        )
        return out[:, :, 0]
