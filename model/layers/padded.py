"""Runs the decoder over the real tokens of a padded batch, and scatters what comes out.

It does not know ids, pictures or the vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mediamill.model.layers.attention import (
    AttentionName,
    CachedCausal,
    DecodeStep,
    KeyValueCache,
    PackedCausal,
)
from mediamill.model.layers.decoder import Decoder
from mediamill.model.layers.outputs import TextOutput
from mediamill.model.layers.padding import Packing


def run_decoder(
    decoder: Decoder,
    embeddings: torch.Tensor,
    packing: Packing,
    positions: torch.Tensor,
    cache: KeyValueCache | None,
    past: Sequence[int],
    name: AttentionName,
    wanted: tuple[bool, bool],
) -> TextOutput:
    """Packed embeddings [T, hidden] at positions [3, T] -> padded outputs.

    past: tokens of each row in the cache, which is filled with the new ones. wanted: hidden states,
    attentions. Raises ValueError if attentions are wanted of another attention than "eager".
    """
    want_states, want_attentions = wanted
    if want_attentions and name != "eager":
        raise ValueError(
            f"output_attentions needs attention='eager': {name!r} does not compute its weights"
        )
    dropout = decoder.config.attention_dropout if decoder.training else 0.0
    if cache is not None:
        cache.reserve(max(n + new for n, new in zip(past, packing.rows, strict=True)))
    attend: PackedCausal | CachedCausal | DecodeStep
    if cache is None or not any(past):
        attend = PackedCausal(packing.lengths, name, cache, dropout, want_attentions)
    elif set(packing.lengths) == {1} and not dropout and not want_attentions:
        attend = DecodeStep(cache, name, span=max(past) + 1)
    else:
        attend = CachedCausal(packing.lengths, past, cache, name, dropout, want_attentions)
    states: list[torch.Tensor] | None = [] if want_states else None
    hidden = packing.unpack(decoder(embeddings, positions, attend, states))
    seen = packing.real
    if seen is None:
        seen = torch.ones(packing.shape, dtype=torch.bool, device=embeddings.device)
    if cache is not None:
        seen = torch.cat((cache.seen, seen.to(cache.seen.device)), dim=1)
        cache.seen = seen
        cache.lengths = cache.lengths + torch.tensor(packing.rows, device=cache.lengths.device)
    attentions = None
    if not isinstance(attend, DecodeStep) and attend.weights is not None:
        attentions = tuple(packing.unpack_attention(pages, seen) for pages in attend.weights)
    padded = None if states is None else (*map(packing.unpack, states[:-1]), hidden)
    return TextOutput(hidden, padded, attentions, cache)


def causal_loss(
    logits: torch.Tensor, labels: torch.Tensor, real: torch.Tensor | None
) -> torch.Tensor:
    """Mean cross entropy, in float32, of labels [B, S] under logits [B, S, V] of the cells before.

    labels: -100 where no loss is wanted. real: bool [B, S]; a label at padding, or whose cell
    before is padding, does not count. Raises ValueError for another shape of labels.
    """
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels is {list(labels.shape)}, expected {list(logits.shape[:2])}")
    wanted = labels[:, 1:].to(logits.device)
    if real is not None:
        wanted = wanted.masked_fill(~(real[:, 1:] & real[:, :-1]).to(wanted.device), -100)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), wanted.flatten(), ignore_index=-100
    )
