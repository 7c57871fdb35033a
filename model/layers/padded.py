"""Runs the decoder over the real tokens of a padded batch, and computes the loss of its logits."""

import torch
import torch.nn.functional as F

from mediamill.model.layers.attention import (
    CachedCausalAttention,
    CachedDecodeAttention,
    PackedCausalAttention,
)
from mediamill.model.layers.cache import KeyValueCache
from mediamill.model.layers.decoder import Decoder
from mediamill.model.layers.kernels import check_attention
from mediamill.model.layers.outputs import TextOutput
from mediamill.model.layers.padding import Packing
from mediamill.model.layers.positions import rope_deltas


def run_decoder(
    decoder: Decoder,
    embeddings: torch.Tensor,
    packing: Packing,
    positions: torch.Tensor,
    cache: KeyValueCache | None,
    attention: str,
    output_states: bool,
    output_attentions: bool,
) -> tuple[TextOutput, torch.Tensor]:
    """Packed embeddings [T, hidden] at positions [3, T] -> padded outputs, and rope_deltas [B].

    attention: see `check_attention`.
    output_states, output_attentions: whether hidden states and attention weights are returned.
    Raises ValueError for an attention that cannot run, and if attention weights are requested of
    another one than "eager".
    """
    positions = positions.to(embeddings.device)
    deltas = rope_deltas(positions, packing)
    name = check_attention(attention, embeddings.device, embeddings.dtype)
    if output_attentions and name != "eager":
        raise ValueError(
            f"output_attentions needs attention='eager': {name!r} does not compute its weights"
        )
    dropout = decoder.config.attention_dropout if decoder.training else 0.0
    past = packing.past
    if cache is not None:
        cache.rope_deltas = deltas
        cache.reserve(max(n + new for n, new in zip(past, packing.row_lengths, strict=True)))
    backend: PackedCausalAttention | CachedCausalAttention | CachedDecodeAttention
    if cache is None or not any(past):
        backend = PackedCausalAttention(packing.lengths, name, cache, dropout, output_attentions)
    elif set(packing.lengths) == {1} and not dropout and not output_attentions:
        backend = CachedDecodeAttention(cache, name, span=max(past) + 1)
    else:
        backend = CachedCausalAttention(
            packing.lengths, past, cache, name, dropout, output_attentions
        )
    states: list[torch.Tensor] | None = [] if output_states else None
    hidden = packing.unpack(decoder(embeddings, positions, backend, states))
    seen = packing.real
    if seen is None:
        seen = torch.ones(packing.shape, dtype=torch.bool, device=embeddings.device)
    if cache is not None:
        seen = torch.cat((cache.seen, seen.to(cache.seen.device)), dim=1)
        cache.seen = seen
        cache.lengths = cache.lengths + torch.tensor(
            packing.row_lengths, device=cache.lengths.device
        )
    attentions = None
    if not isinstance(backend, CachedDecodeAttention) and backend.weights is not None:
        attentions = tuple(packing.unpack_attention(calls, seen) for calls in backend.weights)
    padded = None if states is None else (*map(packing.unpack, states[:-1]), hidden)
    return TextOutput(hidden, padded, attentions, cache), deltas


def causal_loss(
    logits: torch.Tensor, labels: torch.Tensor, real: torch.Tensor | None
) -> torch.Tensor:
    """Returns the mean cross entropy, in float32, of labels [B, S] given logits [B, S, V].

    The logits of a cell predict the label of the next one.

    labels: -100 for no loss.
    real: bool [B, S], true for real tokens; a label at padding, or right after it, does not count.
    Raises ValueError for another shape of labels.
    """
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels is {list(labels.shape)}, expected {list(logits.shape[:2])}")
    targets = labels[:, 1:].to(logits.device)
    if real is not None:
        targets = targets.masked_fill(~(real[:, 1:] & real[:, :-1]).to(targets.device), -100)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100
    )
