"""Padded batches of prepared prompts, for the forward pass of the network.

The engine does not use them: it packs prompts without padding.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch

from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.media.image_rules import ImageRules

Side = Literal["left", "right"]


class PreparedPrompt(Protocol):
    """A prompt whose media have been prepared.

    input_ids: with a pad token for each visual token.
    visuals: its media, in prompt order.
    """

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
    """Returns the tensors of the reference's batch, under its names.

    input_ids, attention_mask: int64 [B, S], S = the longest prompt's length; the mask is 0 at
        padding.
    pixel_values, pixel_values_videos: float32 [N, 3*T*p*p], N = patches of all pictures or videos,
        which are packed in the prompts' order.
    image_grid_thw, video_grid_thw: int64 [media, 3].
    The keys of a kind that no prompt has are left out.
    Raises ValueError for no prompts, and for another side than left and right.
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
    media = [visual for prompt in prompts for visual in prompt.visuals if visual.kind == kind]
    if not media:
        return {}
    patches = torch.cat([visual.patches for visual in media])
    grids = torch.tensor([visual.grid_thw for visual in media], dtype=torch.int64)
    return {name: rules[kind].normalize(patches, kind), f"{kind}_grid_thw": grids}
