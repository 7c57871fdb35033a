"""Turns prepared prompts into the padded tensors of one forward pass of the network.

The engine needs none of this: it packs prompts without padding. Knows ids and patches only.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch

from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.media.image_rules import ImageRules

Side = Literal["left", "right"]


class PreparedPrompt(Protocol):
    """input_ids: with every pad token expanded; visuals: its media, in prompt order."""

    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def visuals(self) -> Sequence[VisualInput]: ...


def collate(
    prompts: Sequence[PreparedPrompt],
    rules: Mapping[VisualKind, ImageRules],
    pad_id: int,
    padding_side: Side = "left",
) -> dict[str, torch.Tensor]:
    """The reference's batch, by its names; media of one kind are packed in the prompts' order.

    input_ids, attention_mask: int64 [B, S], S = the longest prompt's length, the mask 0 on padding.
    pixel_values, pixel_values_videos: float32 [N, 3*T*p*p], N = patches of all pictures, videos.
    image_grid_thw, video_grid_thw: int64 [media, 3]. The keys of a kind that no prompt has are
    left out. Raises ValueError for no prompts, and for another side than left and right.
    """
    if not prompts:
        raise ValueError("found no prompts, expected at least one")
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side is {padding_side!r}, expected left or right")
    length = max(len(prompt.input_ids) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        count = len(prompt.input_ids)
        start = length - count if padding_side == "left" else 0
        ids[row, start : start + count] = torch.tensor(list(prompt.input_ids), dtype=torch.int64)
        mask[row, start : start + count] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        **_media(prompts, rules, "image", "pixel_values"),
        **_media(prompts, rules, "video", "pixel_values_videos"),
    }


def _media(
    prompts: Sequence[PreparedPrompt],
    rules: Mapping[VisualKind, ImageRules],
    kind: VisualKind,
    name: str,
) -> dict[str, torch.Tensor]:
    media = [one for prompt in prompts for one in prompt.visuals if one.kind == kind]
    if not media:
        return {}
    patches = torch.cat([one.patches for one in media])
    grids = torch.tensor([one.grid_thw for one in media], dtype=torch.int64)
    return {name: rules[kind].normalize(patches, kind), f"{kind}_grid_thw": grids}
