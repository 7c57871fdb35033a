"""Tensor parallelism: the dimensions of one rank's share of a network, and its slices of weights.

The split is Megatron's (arXiv 1909.08053). Projections into heads and into the inner width are
split by rows of their weights, projections back by columns, so that attention and the feed-forward
part need one sum over the ranks each. The embedding and the head are split by rows of
the vocabulary. Where there are more ranks than key-value heads, several ranks hold the same head.
The vision tower is small beside the decoder and is not split: each rank has all of it and encodes
its share of the media.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mediamill.model.checkpoint.tensor_slice import TensorSlice
from mediamill.model.errors import ModelError
from mediamill.model.layers.shapes import TextConfig

_LAYER = re.compile(r"model\.layers\.\d+\.(.+)\.\w+")  # the module of a parameter


@dataclass(frozen=True)
class Shard:
    """Part `rank` (from 0) of a network that is split into `size` equal parts."""

    rank: int = 0
    size: int = 1

    def check(self, config: TextConfig) -> None:
        """Raises ModelError when the decoder cannot be split into `size` equal parts."""
        size, heads = self.size, config.num_key_value_heads
        problems = [
            f"{name} {number} is not divisible by it"
            for name, number in (
                ("num_attention_heads", config.num_attention_heads),
                ("intermediate_size", config.intermediate_size),
            )
            if number % size
        ]
        if heads % size and size % heads:
            problems.append(f"num_key_value_heads {heads} is no multiple and no divisor of it")
        if problems:
            raise ModelError(f"the network does not fall into {size} parts: {'; '.join(problems)}")

    def text(self, config: TextConfig) -> TextConfig:
        """Returns the dimensions of this rank's decoder; `vocab_size` stays the whole one."""
        if self.size == 1:
            return config
        return replace(
            config,
            num_attention_heads=config.num_attention_heads // self.size,
            num_key_value_heads=max(1, config.num_key_value_heads // self.size),
            intermediate_size=config.intermediate_size // self.size,
            head_size=config.head_dim,
        )

    def vocabulary(self, size: int) -> tuple[int, int]:
        """Returns the first token id of this rank and how many rows its table has.

        All ranks have equally many rows, so the last ones may have rows without a token.
        """
        rows = -(-size // self.size)
        return self.rank * rows, rows

    def tensor_slice(self, name: str, config: TextConfig) -> TensorSlice | None:
        """Returns this rank's slice of the parameter `name` of the whole network; None: all of it.

        config: of the whole decoder.
        """
        if self.size == 1:
            return None
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            first, rows = self.vocabulary(config.vocab_size)
            return TensorSlice(0, first, min(first + rows, config.vocab_size))
        match = _LAYER.fullmatch(name)
        if not match:
            return None
        # With more ranks than key-value heads, the first size / heads ranks have head 0, and so on.
        kv_heads = max(1, config.num_key_value_heads // self.size)
        first_head = self.rank * config.num_key_value_heads // self.size
        kv_span = (first_head * config.head_dim, (first_head + kv_heads) * config.head_dim)
        heads = self._span(config.num_attention_heads * config.head_dim)
        inner = self._span(config.intermediate_size)
        dim, span = {
            "self_attn.q_proj": (0, heads),
            "self_attn.k_proj": (0, kv_span),
            "self_attn.v_proj": (0, kv_span),
            "self_attn.o_proj": (1, heads),
            "mlp.gate_proj": (0, inner),
            "mlp.up_proj": (0, inner),
            "mlp.down_proj": (1, inner),
        }.get(match[1], (0, None))
        return TensorSlice(dim, *span) if span else None

    def _span(self, size: int) -> tuple[int, int]:
        width = size // self.size
        return self.rank * width, (self.rank + 1) * width


WHOLE = Shard()


def balance(sizes: Sequence[int], ranks: int) -> list[int]:
    """Returns the rank of each piece of work, so that the ranks get similar sums of `sizes`.

    Greedy: the largest piece first, always to the rank with the least work so far.
    """
    loads = [0] * ranks
    owners = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += sizes[i]
    return owners
