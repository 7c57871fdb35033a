"""What a forward pass returns, for padded batches [B, S]. Cells of padding hold zeros."""

from dataclasses import dataclass, field

import torch

from mediamill.model.layers.cache import KeyValueCache


@dataclass(frozen=True)
class TextOutput:
    """What the decoder returns.

    last_hidden_state: [B, S, hidden], normalised.
    hidden_states: if asked for, layers + 1 tensors like it: the input of every layer (first the
        embeddings), and last_hidden_state.
    attentions: if asked for, per layer the weights [B, H, S, K]; K is S, with a cache all columns
        put in so far.
    cache: the cache that was given, filled.
    """

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cache: KeyValueCache | None = None


@dataclass(frozen=True)
class Output(TextOutput):
    """What the whole model returns, besides.

    logits: [B, S, vocabulary] in the model's dtype, or those of `logits_to_keep`.
    loss: mean cross entropy over the labelled tokens, float32, or None.
    rope_deltas: int64 [B, 1]: 1 + the largest position - the number of real tokens.
    """

    logits: torch.Tensor = field(kw_only=True)
    loss: torch.Tensor | None = None
    rope_deltas: torch.Tensor | None = None
