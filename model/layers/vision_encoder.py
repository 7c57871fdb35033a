"""The vision tower's pass for inference: turns uint8 patches into visual tokens.

The same network as `VisionTower.forward`, which it is held against: frames go through it a group
at a time, so that what lies between two layers stays in a processor's cache, and elementwise work
is done in place. It does not know text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, cast

import torch

from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.layers.flash import Boundaries
from mediamill.model.layers.kernels import AttentionName, check_attention, packed_attention
from mediamill.model.layers.patch_embedding import embed_patches, folded
from mediamill.model.layers.rope import Grid, grid_list, rotate_, vision_rotation
from mediamill.model.media.image_rules import ImageRules

if TYPE_CHECKING:
    from mediamill.model.families.qwen2_vl.vision import VisionBlock, VisionTower

# Bytes of the widest activation of a group on a CPU, some of which fit the last cache; and patches
# of a group elsewhere.
CACHED, PATCHES = 4 * 1024 * 1024, 16384


@dataclass(frozen=True)
class Frame:
    """Patches of one frame (or of one pair of them), uint8 [h * w, values]."""

    kind: VisualKind
    patches: torch.Tensor
    grid: Grid


@torch.no_grad()
def encode(
    tower: "VisionTower",
    media: Sequence[VisualInput],
    rules: Mapping[VisualKind, ImageRules],
    name: str,
) -> torch.Tensor:
    """See `VisionTower.encode`."""
    config, weight = tower.config, tower.patch_embed.proj.weight
    kernel = check_attention(name, weight.device, weight.dtype)
    for one in media:
        _check(one, rules, config.spatial_merge_size)
    projections = {
        kind: folded(weight, rules[kind], kind) for kind in sorted({one.kind for one in media})
    }
    limit = PATCHES
    if weight.device.type == "cpu":
        widest = max(int(config.embed_dim * config.mlp_ratio), 3 * config.embed_dim)
        limit = max(1, CACHED // (widest * weight.element_size()))
    done = [weight.new_empty(0, config.hidden_size)]
    for group in _groups(media, limit):
        pieces = []
        for kind, run in groupby(group, lambda frame: frame.kind):
            patches = torch.cat([frame.patches.to(weight.device) for frame in run])
            pieces.append(embed_patches(patches, *projections[kind]))
        x = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        grids = [frame.grid for frame in group]
        cos, sin = vision_rotation(grids, tower.inv_freq, config.spatial_merge_size)
        lengths = [len(frame.patches) for frame in group]
        edges = Boundaries(lengths, weight.device) if kernel == "flash" else None
        for block in tower.blocks:
            x = _block(cast("VisionBlock", block), x, (cos, sin), lengths, kernel, edges)
        done.append(tower.merger(x))
    return torch.cat(done)


def _check(one: VisualInput, rules: Mapping[VisualKind, ImageRules], merge: int) -> None:
    [(t, h, w)], values = grid_list([one.grid_thw], merge), rules[one.kind].patch_values(one.kind)
    if one.patches.dtype != torch.uint8 or one.patches.shape != (t * h * w, values):
        raise ValueError(
            f"the patches are {one.patches.dtype} {list(one.patches.shape)}, and the grid and the "
            f"rules want torch.uint8 {[t * h * w, values]}"
        )


def _groups(media: Sequence[VisualInput], limit: int) -> Iterator[list[Frame]]:
    """The frames in order, in groups of up to `limit` patches (or of one frame, if it is larger).

    No frame sees another, so a video may be cut between them.
    """
    group: list[Frame] = []
    size = 0
    for one in media:
        _, h, w = one.grid_thw
        for patches in torch.split(one.patches, h * w):
            if group and size + h * w > limit:
                yield group
                group, size = [], 0
            group.append(Frame(one.kind, patches, (1, h, w)))
            size += h * w
    if group:
        yield group


def _block(
    block: "VisionBlock",
    x: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    lengths: Sequence[int],
    name: AttentionName,
    boundaries: Boundaries | None,
) -> torch.Tensor:
    """One block over x [N, D], in place. rotation: float32 [N, head_dim] each."""
    attention, mlp = block.attn, block.mlp
    projected = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1))
    turned = projected[:, :2].flatten(1, 2)
    if turned.dtype == torch.float32:
        rotate_(turned, *rotation)
    else:  # the reference turns queries and keys in float32 here, unlike in the decoder
        turned = rotate_(turned.float(), *rotation).to(x.dtype)
    q, k = turned.unflatten(1, (2, -1)).unbind(1)
    out = packed_attention(
        q, k, projected[:, 2], lengths, causal=False, name=name, boundaries=boundaries
    )
    x.add_(attention.projected(out))
    inner = mlp.act_(mlp.fc1(block.norm2(x)))
    return x.add_(mlp.ranks.sum_(mlp.fc2(inner)))
