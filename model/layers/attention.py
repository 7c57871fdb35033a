"""Attention backends of a decoder layer: over packed prompts, over a cache, or both.

Tokens of many sequences are packed one after the other, with the sequences' lengths beside them; no
token attends outside its own sequence.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from mediamill.model.layers.cache import KeyValueCache
from mediamill.model.layers.flash import Boundaries, flash_cached, supports_cached_keys
from mediamill.model.layers.kernels import (
    AttentionName,
    attention,
    check_attention,
    packed_attention,
    window_mask,
)

__all__ = [
    "AttentionBackend",
    "AttentionName",
    "CachedCausalAttention",
    "CachedDecodeAttention",
    "PackedCausalAttention",
    "attention",
    "check_attention",
    "packed_attention",
]


class AttentionBackend(Protocol):
    """Causal attention as a decoder layer calls it.

    Called with q [T, H, d], k and v [T, Hkv, d] of layer `layer`, it returns [T, H, d].

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


class PackedCausalAttention:
    """Attention of whole sequences over themselves, for a forward pass or a prefill.

    cache: where the keys and values of sequence i are stored, in row i.
    dropout: of the attention weights, for training.
    weights: with record=True and "eager", for each layer the weights of its calls, in order:
        [sequences of one length, H, L, L] each.
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
                tokens = slice(start, start + length)
                self.cache.keys[layer][row, :, :length] = k[tokens].transpose(0, 1)
                self.cache.values[layer][row, :, :length] = v[tokens].transpose(0, 1)
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
            weights=_new_layer(self.weights),
            boundaries=self.boundaries,
        )


class CachedDecodeAttention:
    """Attention of one new token per sequence over the cached tokens and itself.

    span: 1 + the length of the longest sequence in the cache; None reads it from the device.
    """

    def __init__(
        self, cache: KeyValueCache, name: AttentionName = "sdpa", span: int | None = None
    ) -> None:
        self.cache = cache
        self.name: AttentionName = name
        self.lengths = [1] * cache.batch
        self.span = int(cache.lengths.max()) + 1 if span is None else span
        self._slots = cache.lengths
        self._rows = torch.arange(len(self._slots), device=self._slots.device)
        self._columns = torch.arange(self.span, device=self._slots.device)
        self._filled = (self._slots + 1).to(torch.int32)
        self._mask = (self._columns <= self._slots[:, None])[:, None, None]

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None = None,
    ) -> torch.Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self._rows, :, self._slots] = k
        values[self._rows, :, self._slots] = v
        if self.name == "flash" and supports_cached_keys():
            return flash_cached(
                q, keys.transpose(1, 2), values.transpose(1, 2), self._filled, window
            )
        mask = self._mask
        if window is not None and window < self.span:
            mask = mask & (self._columns > self._slots[:, None] - window)[:, None, None]
        out = attention(
            q[:, :, None],
            keys[:, :, : self.span],
            values[:, :, : self.span],
            causal=False,
            mask=mask,
            name=self.name,
        )
        return out[:, :, 0]


class CachedCausalAttention:
    """Attention of any number of new tokens per sequence, also none, after the cached ones.

    past: tokens in the cache per sequence; the cache must have room for the new ones.
    dropout, weights: see PackedCausalAttention; the weights are [1, H, new, past + new] for each
        sequence with new tokens.
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
        weights, outputs, start = _new_layer(self.weights), [], 0
        for row, (past, new) in enumerate(zip(self.past, self.lengths, strict=True)):
            if new == 0:
                continue
            tokens = slice(start, start + new)
            start += new
            keys[row, :, past : past + new] = k[tokens].transpose(0, 1)
            values[row, :, past : past + new] = v[tokens].transpose(0, 1)
            out = attention(
                q[tokens].transpose(0, 1)[None],
                keys[row, :, : past + new][None],
                values[row, :, : past + new][None],
                causal=False,
                mask=window_mask(new, past + new, window, q.device)[None, None],
                name=self.name,
                dropout=self.dropout,
                weights=weights,
            )
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs)


def _new_layer(weights: list[list[torch.Tensor]] | None) -> list[torch.Tensor] | None:
    """Appends a list for the weights of one more layer, and returns it; None: none are recorded."""
    if weights is None:
        return None
    weights.append([])
    return weights[-1]
