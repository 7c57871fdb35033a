"""Turns a model's configuration into that of one rank, and names of tensors into the parts of them
that the rank holds.

Megatron's split (arXiv 1909.08053): projections into heads and into the inner width by rows of
their weights, those back by columns, so that one sum follows attention and one the feed-forward
part; embedding and head by rows of the vocabulary. Key-value heads fewer than ranks are held by
several. Nothing is read here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mediamill.model.errors import ModelError
from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig, TextConfig, VisionConfig

# The vision tower is small beside the decoder: each rank has all of it and encodes its share of
# the media ("data"), or it is split as the decoder is ("tensor").
VisionSplit = Literal["data", "tensor"]

_LAYER = re.compile(r"model\.layers\.\d+\.(.+)")
_BLOCK = re.compile(r"visual\.blocks\.\d+\.(.+)")


@dataclass(frozen=True)
class Part:
    """What a rank holds of a stored tensor: `spans` along dimension `dim`, one after the other.

    No span: nothing; the rank's parameter is zero.
    """

    dim: int
    spans: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.spans)


@dataclass(frozen=True)
class Shard:
    """Which of `size` equal parts of a network: number `rank`."""

    rank: int = 0
    size: int = 1
    vision: VisionSplit = "data"

    def check(self, config: Qwen2VLConfig) -> None:
        """Raises ModelError when the network does not fall into so many parts."""
        text, size = config.text, self.size
        problems = [
            f"{name} {number} is not divisible by it"
            for name, number in (
                ("num_attention_heads", text.num_attention_heads),
                ("intermediate_size", text.intermediate_size),
            )
            if number % size
        ]
        heads = text.num_key_value_heads
        if heads % size and size % heads:
            problems.append(f"num_key_value_heads {heads} is no multiple and no divisor of it")
        vision = config.vision
        if self.vision == "tensor":
            if vision.num_heads % size:
                problems.append(f"the vision tower's {vision.num_heads} heads are not divisible")
            if int(vision.embed_dim * vision.mlp_ratio) % size:
                problems.append("the vision tower's inner width is not divisible by it")
        if problems:
            raise ModelError(f"the network does not fall into {size} parts: {'; '.join(problems)}")

    def text(self, config: TextConfig) -> TextConfig:
        """The decoder as this rank holds it; the vocabulary is the whole one."""
        if self.size == 1:
            return config
        return replace(
            config,
            num_attention_heads=config.num_attention_heads // self.size,
            num_key_value_heads=max(1, config.num_key_value_heads // self.size),
            intermediate_size=config.intermediate_size // self.size,
            head_size=config.head_dim,
        )

    def vision_parts(self) -> int:
        """Into how many parts the vision tower's layers are split."""
        return self.size if self.vision == "tensor" else 1

    def vocabulary(self, size: int) -> tuple[int, int]:
        """First token of this rank, and how many it has room for; the last rank's may be more than
        there are.
        """
        room = -(-size // self.size)
        return self.rank * room, room

    def part(self, name: str, config: Qwen2VLConfig) -> Part | None:
        """What this rank holds of the tensor `name` of the whole network; None: all of it."""
        if self.size == 1:
            return None
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            first, room = self.vocabulary(config.text.vocab_size)
            return Part(0, ((first, min(first + room, config.text.vocab_size)),))
        if found := _LAYER.fullmatch(name):
            return self._layer_part(found[1], config.text)
        if (found := _BLOCK.fullmatch(name)) and self.vision == "tensor":
            return self._block_part(found[1], config.vision)
        return None

    def _layer_part(self, name: str, text: TextConfig) -> Part | None:
        module = name.rpartition(".")[0]
        heads = self._span(text.num_attention_heads * text.head_dim)
        inner = self._span(text.intermediate_size)
        # Ranks that share a head: the first size / Hkv of them have head 0, and so on.
        keys = max(1, text.num_key_value_heads // self.size)
        first = self.rank * text.num_key_value_heads // self.size
        kept = (first * text.head_dim, (first + keys) * text.head_dim)
        return {
            "self_attn.q_proj": Part(0, (heads,)),
            "self_attn.k_proj": Part(0, (kept,)),
            "self_attn.v_proj": Part(0, (kept,)),
            "self_attn.o_proj": Part(1, (heads,)),
            "mlp.gate_proj": Part(0, (inner,)),
            "mlp.up_proj": Part(0, (inner,)),
            "mlp.down_proj": Part(1, (inner,)),
        }.get(module)

    def _block_part(self, name: str, vision: VisionConfig) -> Part | None:
        width = vision.embed_dim
        start, stop = self._span(width)
        inner = self._span(int(width * vision.mlp_ratio))
        once = None if self.rank == 0 else Part(0, ())  # a bias is added once, not by each rank
        three = tuple((k * width + start, k * width + stop) for k in range(3))
        return {
            "attn.qkv.weight": Part(0, three),
            "attn.qkv.bias": Part(0, three),
            "attn.proj.weight": Part(1, ((start, stop),)),
            "attn.proj.bias": once,
            "mlp.fc1.weight": Part(0, (inner,)),
            "mlp.fc1.bias": Part(0, (inner,)),
            "mlp.fc2.weight": Part(1, (inner,)),
            "mlp.fc2.bias": once,
        }.get(name)

    def _span(self, size: int) -> tuple[int, int]:
        each = size // self.size
        return self.rank * each, (self.rank + 1) * each


WHOLE = Shard()


def shares(sizes: Sequence[int], ranks: int) -> list[int]:
    """Which rank does each piece of work, so that all have about as much: the largest first, each
    to who has least.
    """
    load = [0] * ranks
    owners = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owners[i] = load.index(min(load))
        load[owners[i]] += sizes[i]
    return owners
