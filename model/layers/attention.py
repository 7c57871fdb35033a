"""What a decoder layer calls for attention: over packed prompts, over a cache, or both.

Everything is packed: tokens of many sequences stand one after the other, with their lengths beside
them, and no token attends outside its own sequence. It does not know positions or weights.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from mediamill.model.layers.cache import KeyValueCache
from mediamill.model.layers.flash import Boundaries, does_cached_keys, flash_cached
from mediamill.model.layers.kernels import (
    AttentionName,
    attention,
    check_attention,
    packed_attention,
    window_mask,
)

__all__ = [
    "Attend",
    "AttentionName",
    "CachedCausal",
    "DecodeStep",
    "KeyValueCache",
    "PackedCausal",
    "attention",
    "check_attention",
    "packed_attention",
]


class Attend(Protocol):
    """What a decoder layer calls: q [T, H, d], k and v [T, Hkv, d] of layer `layer` -> [T, H,
    d].

    lengths: new tokens per sequence, in order; they sum to T.
    window: the layer's sliding window: key j is visible to query i of its sequence iff
        i - window < j <= i; None: every key up to i.
    """

    @property
    def lengths(self) -> Sequence[int]: ...

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None = None,
    ) -> torch.Tensor: ...


class PackedCausal:
    """Attend for a forward pass or a prefill: each sequence over itself, causally.

    With a cache, the keys and values of sequence i are stored in its row i. dropout: of the
    weights, for training.
    weights: with record=True and "eager", the weights of each layer's calls, in order: [sequences
        of one length, H, L, L] each.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        name: AttentionName = "sdpa",
        cache: KeyValueCache | None = None,
        dropout: float = 0.0,
        record: bool = False,
    ) -> None:
        self.lengths = list(lengths)
        self.name: AttentionName = name
        self.cache = cache
        self.dropout = dropout
        self.weights: list[list[torch.Tensor]] | None = [] if record else None
        self.boundaries: Boundaries | None = None

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None = None,
    ) -> torch.Tensor:
        if self.cache is not None:
            start = 0
            for row, length in enumerate(self.lengths):
                new = slice(start, start + length)
                self.cache.keys[layer][row, :, :length] = k[new].transpose(0, 1)
                self.cache.values[layer][row, :, :length] = v[new].transpose(0, 1)
                start += length
        if self.name == "flash" and self.boundaries is None:
            self.boundaries = Boundaries(self.lengths, q.device)
        return packed_attention(
            q,
            k,
            v,
            self.lengths,
            causal=True,
            name=self.name,
            window=window,
            dropout=self.dropout,
            weights=_page(self.weights),
            boundaries=self.boundaries,
        )


class DecodeStep:
    """Attend for one decode step: one new token per sequence, over all that is cached and
    itself.

    span: one more than the longest sequence in the cache; None asks the device for it.
    """

    def __init__(
        self, cache: KeyValueCache, name: AttentionName = "sdpa", span: int | None = None
    ) -> None:
        self.cache = cache
        self.name: AttentionName = name
        self.lengths = [1] * cache.batch
        self.slots = cache.lengths
        self.span = int(cache.lengths.max()) + 1 if span is None else span
        self.rows = torch.arange(len(self.slots), device=self.slots.device)
        self.places = torch.arange(self.span, device=self.slots.device)
        self.filled = (self.slots + 1).to(torch.int32)
        self.mask = (self.places <= self.slots[:, None])[:, None, None]

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None = None,
    ) -> torch.Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows, :, self.slots] = k
        values[self.rows, :, self.slots] = v
        if self.name == "flash" and does_cached_keys():
            return flash_cached(
                q, keys.transpose(1, 2), values.transpose(1, 2), self.filled, window
            )
        mask = self.mask
        if window is not None and window < self.span:
            mask = mask & (self.places > self.slots[:, None] - window)[:, None, None]
        out = attention(
            q[:, :, None],
            keys[:, :, : self.span],
            values[:, :, : self.span],
            causal=False,
            mask=mask,
            name=self.name,
        )
        return out[:, :, 0]


class CachedCausal:
    """Attend for going on with any number of new tokens per sequence, none included, after what is
    cached.

    past: tokens in the cache per sequence. The cache must have room for the new ones. dropout and
    weights: as in PackedCausal; the weights are [1, H, new, past + new] per sequence with new
    tokens.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        past: Sequence[int],
        cache: KeyValueCache,
        name: AttentionName = "sdpa",
        dropout: float = 0.0,
        record: bool = False,
    ) -> None:
        self.lengths = list(lengths)
        self.past = list(past)
        self.cache = cache
        self.name: AttentionName = name
        self.dropout = dropout
        self.weights: list[list[torch.Tensor]] | None = [] if record else None

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None = None,
    ) -> torch.Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        page, pieces, start = _page(self.weights), [], 0
        for row, (past, new) in enumerate(zip(self.past, self.lengths, strict=True)):
            if new == 0:
                continue
            rows = slice(start, start + new)
            start += new
            keys[row, :, past : past + new] = k[rows].transpose(0, 1)
            values[row, :, past : past + new] = v[rows].transpose(0, 1)
            out = attention(
                q[rows].transpose(0, 1)[None],
                keys[row, :, : past + new][None],
                values[row, :, : past + new][None],
                causal=False,
                mask=window_mask(new, past + new, window, q.device)[None, None],
                name=self.name,
                dropout=self.dropout,
                weights=page,
            )
            pieces.append(out[0].transpose(0, 1))
        return torch.cat(pieces)


def _page(weights: list[list[torch.Tensor]] | None) -> list[torch.Tensor] | None:
    """A new list for one layer's weights, or None where none are kept."""
    if weights is None:
        return None
    weights.append([])
    return weights[-1]
