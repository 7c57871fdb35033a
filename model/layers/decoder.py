"""The decoder: turns token embeddings and their positions into hidden states.

Layers see packed tokens [T, hidden] and call `attend` for attention, so the same layer serves
training, prefill and decode. It does not know pictures, vocabularies or caches. Parameter names
below `model.` are those of the hub checkpoints.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mediamill.model.families.qwen2_vl.config import TextConfig
from mediamill.model.layers.activations import activation, activation_
from mediamill.model.layers.attention import Attend
from mediamill.model.layers.collectives import SINGLE_RANK, Collectives
from mediamill.model.layers.packed_linear import SplitLinear
from mediamill.model.layers.rope import rotate, rotate_, text_rotation
from mediamill.model.layers.rope_types import (
    attention_scaling,
    frequencies_by_length,
    scaled_frequencies,
    sequence_lengths,
)
from mediamill.model.layers.shards import WHOLE, Shard


class RMSNorm(nn.Module):
    """x / rms(x) * weight; the mean of squares in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; the attention itself is the caller's.

    config: with the heads of this rank. ranks: those that have the others.
    """

    def __init__(self, config: TextConfig, layer: int, ranks: Collectives = SINGLE_RANK) -> None:
        super().__init__()
        self.ranks = ranks
        self.layer = layer
        self.window = config.window(layer)
        self.head_dim = config.head_dim
        width, q_width = config.hidden_size, config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, q_width)
        self.k_proj = nn.Linear(width, kv_width)
        self.v_proj = nn.Linear(width, kv_width)
        self.o_proj = nn.Linear(q_width, width, bias=False)
        self.qkv: SplitLinear | None = None

    def join(self) -> None:
        """Make the projections of queries, keys and values one, for inference."""
        self.qkv = SplitLinear([self.q_proj, self.k_proj, self.v_proj])
        del self.q_proj, self.k_proj, self.v_proj

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], attend: Attend
    ) -> torch.Tensor:
        return self.projected(self.attended(x, rotation, attend))

    def projected(self, attended: torch.Tensor) -> torch.Tensor:
        """What is added to the layer's input: [T, hidden], of all ranks' heads."""
        return self.ranks.sum_(self.o_proj(attended))

    def attended(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], attend: Attend
    ) -> torch.Tensor:
        """What the output projection takes: [T, heads * head_dim]."""
        if self.qkv is not None:
            heads = self.qkv.linear(x).unflatten(-1, (-1, self.head_dim))
            values = self.qkv.sizes[2] // self.head_dim
            rotate_(heads[:, :-values], *rotation)
            q, k, v = heads.split([n // self.head_dim for n in self.qkv.sizes], dim=1)
        else:
            q, k, v = (
                proj(x).unflatten(-1, (-1, self.head_dim))
                for proj in (self.q_proj, self.k_proj, self.v_proj)
            )
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        return attend(self.layer, q, k, v, self.window).flatten(1)


class SwiGLU(nn.Module):
    """down(act(gate(x)) * up(x)) (arXiv 2002.05202), act being silu in every published file."""

    def __init__(self, config: TextConfig, ranks: Collectives = SINGLE_RANK) -> None:
        super().__init__()
        self.ranks = ranks
        self.act = activation(config.hidden_act)
        self.act_ = activation_(config.hidden_act)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.gate_up: SplitLinear | None = None

    def join(self) -> None:
        """Make the two projections of the input one, for inference."""
        self.gate_up = SplitLinear([self.gate_proj, self.up_proj])
        del self.gate_proj, self.up_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_up is not None:
            gate, up = self.gate_up(x)
            return self.ranks.sum_(self.down_proj(self.act_(gate) * up))
        return self.ranks.sum_(self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward part; each normalised before and added to its input."""

    def __init__(self, config: TextConfig, layer: int, ranks: Collectives = SINGLE_RANK) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer, ranks)
        self.mlp = SwiGLU(config, ranks)

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], attend: Attend
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, attend)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]

    def last(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        attend: Attend,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """As `forward`, but only the tokens `rows` (int64 [n]) go on after attention: [n, hidden].

        All keys and values are made; the rest of a layer serves no other token.
        """
        attended = self.self_attn.attended(self.input_layernorm(x), rotation, attend)
        x = x[rows] + self.self_attn.projected(attended[rows])
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class TokenEmbedding(nn.Embedding):
    """Token ids [...] -> embeddings [..., hidden]; the table's rows may lie with several ranks.

    shard: whose rows of the table these are.
    """

    def __init__(self, config: TextConfig, shard: Shard, ranks: Collectives) -> None:
        self.first, rows = shard.vocabulary(config.vocab_size)
        # Only training knows the padding token, and it has the whole table.
        padding = config.pad_token_id if ranks.size == 1 else None
        super().__init__(rows, config.hidden_size, padding_idx=padding)
        self.ranks = ranks

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch names it so
        if self.ranks.size == 1:
            return super().forward(input)
        mine = input - self.first
        outside = (mine < 0) | (mine >= self.num_embeddings)
        found = super().forward(mine.masked_fill(outside, 0))
        return self.ranks.sum_(found.masked_fill(outside[..., None], 0))


class Decoder(nn.Module):
    """All layers and the final norm.

    config: of the whole network, or of the part `shard` of it, whose other parts `ranks` have.
    """

    inv_freq: torch.Tensor

    def __init__(
        self, config: TextConfig, shard: Shard = WHOLE, ranks: Collectives = SINGLE_RANK
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = TokenEmbedding(config, shard, ranks)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, ranks) for i in range(config.num_hidden_layers)
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
        """Compute the float32 frequencies anew, after the module was built without memory or
        cast.
        """
        self.inv_freq = self._frequencies().to(device)

    def rotation(
        self, positions: torch.Tensor, lengths: Sequence[int], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, `dtype` [T, head_dim] each, of positions [3, T] of packed sequences.

        Where the frequencies follow the length of the sequence (rope types dynamic and longrope),
        that is 1 + the largest position of the sequence in this call, for each sequence alone: no
        sequence changes another, and no call the next.
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
        attend: Attend,
        states: list[torch.Tensor] | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings [T, hidden], int64 positions [3, T] -> final hidden states [T, hidden],
        normalised.

        states: gathers the input of every layer and, last, the result: layers + 1 tensors.
        rows: int64 [n], the tokens whose states are wanted: [n, hidden]; None: all. The last layer
            then works for those alone.
        """
        rotation = self.rotation(positions, attend.lengths, embeddings.dtype)
        x = embeddings
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            if states is not None:
                states.append(x)
            if rows is not None and layer is self.layers[-1]:
                x = layer.last(x, rotation, attend, rows)
            else:
                x = layer(x, rotation, attend)
        x = self.norm(x)
        if states is not None:
            states.append(x)
        return x  # type: ignore[no-any-return]
