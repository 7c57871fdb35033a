"""Computes the FLOPs, bytes and minimum times of a captioning job from the network's shapes.

A multiplication with its addition counts as two FLOPs.
"""

from dataclasses import dataclass

from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig
from mediamill.model.layers.shapes import TextConfig


@dataclass(frozen=True)
class Ceilings:
    """The limits of a device: FLOP per second of large products, bytes per second of its memory."""

    flops: float
    bytes: float


def vision_flops(config: Qwen2VLConfig, grids: list[tuple[int, int, int]]) -> float:
    """FLOPs of the vision tower. A picture's two equal time slices are folded into one."""
    vision = config.vision
    width, inner = vision.embed_dim, vision.embed_dim * vision.mlp_ratio
    group = width * vision.spatial_merge_size**2
    total = 0.0
    for t, h, w in grids:
        patches = t * h * w
        slices = vision.temporal_patch_size if t > 1 else 1
        values = vision.in_channels * vision.patch_size**2 * slices
        linear = vision.depth * (4 * width * width + 2 * width * inner) + values * width
        merger = group * group + group * vision.hidden_size
        total += 2 * patches * linear + 2 * patches / vision.spatial_merge_size**2 * merger
        # Each frame attends to itself: scores and sums, 2 FLOP each.
        total += t * 4 * (h * w) ** 2 * width * vision.depth
    return total


def layer_weights(text: TextConfig) -> int:
    """The weights of all layers that one token is multiplied with."""
    size, kv = text.hidden_size, text.num_key_value_heads * text.head_dim
    per_layer = 2 * size * size + 2 * size * kv + 3 * size * text.intermediate_size
    return text.num_hidden_layers * per_layer


def head_weights(text: TextConfig) -> int:
    """The weights of the head."""
    return text.vocab_size * text.hidden_size


def prefill_flops(text: TextConfig, lengths: list[int]) -> float:
    """FLOPs of prompts of these lengths.

    The head counts for one token of each, attention for half of all pairs.
    """
    width = text.num_attention_heads * text.head_dim
    total = 0.0
    for length in lengths:
        total += 2 * length * layer_weights(text) + 2 * head_weights(text)
        total += 2 * length**2 * width * text.num_hidden_layers
    return total


def cache_bytes(text: TextConfig, element: int = 2) -> int:
    """Bytes of one token in the KV cache."""
    return text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * element


def decode_flops(text: TextConfig, batch: int, context: float) -> float:
    """FLOPs of one step of a batch."""
    width = text.num_attention_heads * text.head_dim
    linear = layer_weights(text) + head_weights(text)
    return batch * (2 * linear + 4 * context * width * text.num_hidden_layers)


def decode_bytes(text: TextConfig, batch: int, context: float, element: int = 2) -> float:
    """Bytes that a step reads: all weights once, and the keys and values of every sequence."""
    weights = (layer_weights(text) + head_weights(text)) * element
    return weights + batch * context * cache_bytes(text, element)


def decode_seconds(text: TextConfig, batch: int, context: float, ceilings: Ceilings) -> float:
    """The minimum time of one step: the longer of computing and reading."""
    return max(
        decode_flops(text, batch, context) / ceilings.flops,
        decode_bytes(text, batch, context) / ceilings.bytes,
    )


def picture_seconds(
    config: Qwen2VLConfig,
    grids: list[tuple[int, int, int]],
    prompt: int,
    new: int,
    batch: int,
    ceilings: Ceilings,
) -> float:
    """The minimum time of one request with these pictures, one phase after the other."""
    merge = config.vision.spatial_merge_size**2
    tokens = prompt + sum(t * h * w // merge for t, h, w in grids)
    step = decode_seconds(config.text, batch, tokens + new / 2, ceilings)
    return (
        vision_flops(config, grids) / ceilings.flops
        + prefill_flops(config.text, [tokens]) / ceilings.flops
        + new * step / batch
    )
