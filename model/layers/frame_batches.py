"""Batches of embedded video frames and pictures for a vision tower at inference.

Frames do not attend to one another, so a video may be cut between them. A batch on a CPU is small
enough for its activations to stay in the processor's cache from layer to layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.layers.patch_embedding import embed_patches, fold_normalization
from mediamill.model.layers.rope import Grid, grid_list
from mediamill.model.media.image_rules import ImageRules

# The widest activation of a batch on a CPU, in bytes: a few of that size fit the last-level cache.
CPU_ACTIVATION_BYTES = 4 * 1024 * 1024
# Patches of a batch on other devices.
GPU_PATCHES = 16384


@dataclass(frozen=True)
class Frame:
    """The patches of a picture or of one temporal group of a video, uint8 [h * w, values]."""

    kind: VisualKind
    patches: torch.Tensor
    grid: Grid


def embedded_frames(
    media: Sequence[VisualInput],
    rules: Mapping[VisualKind, ImageRules],
    weight: torch.Tensor,
    merge: int,
    width: int,
) -> Iterator[tuple[torch.Tensor, list[Grid]]]:
    """Yields batches of frames in order: embedded patches [N, D] and the frames' grids.

    weight: of the patch projection, [D, C, T, p, p]; it also gives the device and the dtype.
    merge: patches of a visual token on each axis, by which grids have to be divisible.
    width: of the widest activation of the tower.
    Raises ValueError, before the first batch, where patches do not match their grids or rules.
    """
    for visual in media:
        _check(visual, rules, merge)
    kinds = sorted({visual.kind for visual in media})
    projections = {kind: fold_normalization(weight, rules[kind], kind) for kind in kinds}
    limit = GPU_PATCHES
    if weight.device.type == "cpu":
        limit = max(1, CPU_ACTIVATION_BYTES // (width * weight.element_size()))
    for batch in _batches(media, limit):
        embedded = []
        for kind, frames in groupby(batch, lambda frame: frame.kind):
            patches = torch.cat([frame.patches.to(weight.device) for frame in frames])
            embedded.append(embed_patches(patches, *projections[kind]))
        x = embedded[0] if len(embedded) == 1 else torch.cat(embedded)
        yield x, [frame.grid for frame in batch]


def _check(visual: VisualInput, rules: Mapping[VisualKind, ImageRules], merge: int) -> None:
    [(t, h, w)] = grid_list([visual.grid_thw], merge)
    expected = (t * h * w, rules[visual.kind].patch_values(visual.kind))
    if visual.patches.dtype != torch.uint8 or visual.patches.shape != expected:
        raise ValueError(
            f"the patches are {visual.patches.dtype} {list(visual.patches.shape)}, and the grid "
            f"and the rules want torch.uint8 {list(expected)}"
        )


def _batches(media: Sequence[VisualInput], limit: int) -> Iterator[list[Frame]]:
    """Yields the frames in order, in batches of up to `limit` patches, or of one larger frame."""
    batch: list[Frame] = []
    size = 0
    for visual in media:
        _, h, w = visual.grid_thw
        for patches in torch.split(visual.patches, h * w):
            if batch and size + h * w > limit:
                yield batch
                batch, size = [], 0
            batch.append(Frame(visual.kind, patches, (1, h, w)))
            size += h * w
    if batch:
        yield batch
