"""The results of a forward pass over a padded batch [B, S]; they are zero at padding."""

from dataclasses import dataclass, field

import torch

from mediamill.model.layers.cache import KeyValueCache


@dataclass(frozen=True)
class TextOutput:
    """The result of the decoder.

    last_hidden_state: [B, S, hidden], normalized.
    hidden_states: if requested, layers + 1 tensors like it: the input of every layer (first the
        embeddings), and last_hidden_state.
    attentions: if requested, the weights [B, H, S, K] of each layer; K is S, or with a cache the
        number of all columns so far.
    cache: the cache of the call, filled.
    """

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cache: KeyValueCache | None = None


@dataclass(frozen=True)
class Output(TextOutput):
    """The result of the whole model: that of the decoder, and more.

    logits: [B, S, vocabulary] in the model's dtype, or those that `logits_to_keep` selects.
    loss: mean cross entropy over the labelled tokens, float32, or None.
    rope_deltas: int64 [B, 1]: 1 + the largest position - the number of real tokens.
    """

    logits: torch.Tensor = field(kw_only=True)
    loss: torch.Tensor | None = None
    rope_deltas: torch.Tensor | None = None
