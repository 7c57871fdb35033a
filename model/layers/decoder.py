"""The decoder: from token embeddings and their positions to hidden states.

Layers take packed tokens [T, hidden] and an attention backend, so the same layer serves training,
prefill and decode. Parameter names below `model.` are those of the hub checkpoints.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mediamill.model.layers.attention import AttentionBackend
from mediamill.model.layers.collectives import SINGLE_RANK, Collectives
from mediamill.model.layers.linear import MergedLinear
from mediamill.model.layers.mlps import SwiGLU
from mediamill.model.layers.norms import RMSNorm
from mediamill.model.layers.rope import rotate, rotate_, text_rotation
from mediamill.model.layers.rope_types import (
    attention_scaling,
    frequencies_by_length,
    scaled_frequencies,
    sequence_lengths,
)
from mediamill.model.layers.shapes import TextConfig
from mediamill.model.layers.shards import WHOLE, Shard


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; the backend computes the softmax attention.

    config: of this rank's part of the network.
    collectives: of the ranks that have the other heads.
    """

    def __init__(self, config: TextConfig, layer: int, collectives: Collectives) -> None:
        super().__init__()
        self.collectives = collectives
        self.layer = layer
        self.window = config.window(layer)
        self.head_dim = config.head_dim
        width, q_width = config.hidden_size, config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, q_width)
        self.k_proj = nn.Linear(width, kv_width)
        self.v_proj = nn.Linear(width, kv_width)
        self.o_proj = nn.Linear(q_width, width, bias=False)
        self.qkv: MergedLinear | None = None

    def fuse(self) -> None:
        """Makes the projections of queries, keys and values one product, for inference."""
        self.qkv = MergedLinear([self.q_proj, self.k_proj, self.v_proj])
        del self.q_proj, self.k_proj, self.v_proj

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        backend: AttentionBackend,
    ) -> torch.Tensor:
        """Tokens x [T, hidden], cosine and sine [T, head_dim] -> [T, hidden]."""
        return self.project(self.attention_output(x, rotation, backend))

    def project(self, attention_output: torch.Tensor) -> torch.Tensor:
        """The output projection, summed over the ranks: [n, heads * head_dim] -> [n, hidden]."""
        return self.collectives.all_reduce_(self.o_proj(attention_output))

    def attention_output(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        backend: AttentionBackend,
    ) -> torch.Tensor:
        """The input of the output projection: [T, heads * head_dim]."""
        if self.qkv is not None:
            qkv = self.qkv.linear(x).unflatten(-1, (-1, self.head_dim))
            heads = [size // self.head_dim for size in self.qkv.sizes]
            rotate_(qkv[:, : -heads[2]], *rotation)
            q, k, v = qkv.split(heads, dim=1)
        else:
            q, k, v = (
                proj(x).unflatten(-1, (-1, self.head_dim))
                for proj in (self.q_proj, self.k_proj, self.v_proj)
            )
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        return backend(self.layer, q, k, v, self.window).flatten(1)


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward part, each with a norm before it and a residual sum."""

    def __init__(self, config: TextConfig, layer: int, collectives: Collectives) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer, collectives)
        self.mlp = SwiGLU(config, collectives)

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        backend: AttentionBackend,
        token_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens x [T, hidden] -> [T, hidden].

        token_indices: int64 [n], the tokens whose output is needed: -> [n, hidden]. Keys and values
            are computed for all tokens, the rest of the layer only for these; None: for all.
        """
        output = self.self_attn.attention_output(self.input_layernorm(x), rotation, backend)
        if token_indices is not None:
            x, output = x[token_indices], output[token_indices]
        x = x + self.self_attn.project(output)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class TokenEmbedding(nn.Embedding):
    """Token ids [...] -> embeddings [..., hidden], from a table that is split over the ranks.

    shard: which rows of the table this rank has.
    """

    def __init__(self, config: TextConfig, shard: Shard, collectives: Collectives) -> None:
        self.first, rows = shard.vocabulary(config.vocab_size)
        # Only training needs the padding token, and there the table is whole.
        padding = config.pad_token_id if collectives.size == 1 else None
        super().__init__(rows, config.hidden_size, padding_idx=padding)
        self.collectives = collectives

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name of nn.Embedding
        if self.collectives.size == 1:
            return super().forward(input)
        indices = input - self.first
        outside = (indices < 0) | (indices >= self.num_embeddings)
        embeddings = super().forward(indices.masked_fill(outside, 0))
        return self.collectives.all_reduce_(embeddings.masked_fill(outside[..., None], 0))


class Decoder(nn.Module):
    """All layers and the final norm.

    config: of the whole network, or of the part `shard` of it, whose other parts are on the other
        ranks of `collectives`.
    """

    inv_freq: torch.Tensor

    def __init__(
        self, config: TextConfig, shard: Shard = WHOLE, collectives: Collectives = SINGLE_RANK
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = TokenEmbedding(config, shard, collectives)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, collectives) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.register_buffer("inv_freq", self._frequencies(), persistent=False)
        self.scaling = attention_scaling(config.rope, config.max_position_embeddings)

    def _frequencies(self) -> torch.Tensor:
        config = self.config
        return scaled_frequencies(
            config.rope, config.head_dim, config.rope_theta, config.max_position_embeddings
        )

    def reset_frequencies(self, device: torch.device) -> None:
        """Computes the float32 frequencies again, after a build on "meta" or a cast lost them."""
        self.inv_freq = self._frequencies().to(device)

    def rotation(
        self, positions: torch.Tensor, lengths: Sequence[int], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, `dtype` [T, head_dim] each, of positions [3, T] of packed sequences.

        With the rope types dynamic and longrope the frequencies depend on the length of the
        sequence: 1 + its largest position in this call. Sequences never influence one another, nor
        does one call influence the next.
        """
        config, inv_freq = self.config, self.inv_freq
        if config.rope.follows_length:
            longest = sequence_lengths(positions, lengths)
            inv_freq = frequencies_by_length(
                config.rope, inv_freq, longest, config.rope_theta, config.max_position_embeddings
            )
        return text_rotation(positions, inv_freq, config.mrope_section, dtype, self.scaling)

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        backend: AttentionBackend,
        states: list[torch.Tensor] | None = None,
        token_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings [T, hidden], int64 positions [3, T] -> normalized hidden states [T, hidden].

        states: a list to which the input of every layer and, last, the result are appended:
            layers + 1 tensors.
        token_indices: int64 [n], the tokens whose hidden states are needed: -> [n, hidden]; the
            last layer is computed only for them. None: all tokens.
        """
        rotation = self.rotation(positions, backend.lengths, embeddings.dtype)
        x, last = embeddings, len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            if states is not None:
                states.append(x)
            x = layer(x, rotation, backend, token_indices if i == last else None)
        x = self.norm(x)
        if states is not None:
            states.append(x)
        return x  # type: ignore[no-any-return]
