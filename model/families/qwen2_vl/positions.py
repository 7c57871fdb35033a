"""The M-RoPE positions of prompts with pictures and videos (arXiv 2409.12191, section 2.1)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch

from mediamill.model.families.qwen2_vl.config import MRopeRule, Qwen2VLConfig
from mediamill.model.layers.padding import Packing
from mediamill.model.layers.rope import Grid


def mrope_positions(
    input_ids: Sequence[int],
    grids: Sequence[Grid],
    visual_token_ids: tuple[int, int],
    rule: MRopeRule = "original",
    merge: int = 2,
) -> tuple[torch.Tensor, int]:
    """Returns the positions of a prompt, int64 [3, len(input_ids)], and that of the next token.

    input_ids: the prompt, with a pad token for each visual token.
    grids: (t, h, w) in patches of each picture or video, in prompt order.
    visual_token_ids: the image and the video pad token.
    rule: where positions continue after a medium of t x h' x w' tokens: "original" adds
        max(t, h', w') to its first position, as the checkpoints were trained; "hf5"
        (transformers 5.x) adds max(h', w').
    merge: patches of a visual token on each axis.
    Raises ValueError when the runs of pad tokens do not match the grids.
    """
    chunks: list[torch.Tensor] = []
    remaining = iter(grids)
    start = 0
    for is_visual, run in groupby(input_ids, key=lambda token: token in visual_token_ids):
        length = sum(1 for _ in run)
        if not is_visual:
            chunks.append(torch.arange(start, start + length).expand(3, -1))
            start += length
            continue
        # Adjacent media (no vision_end between them) share one run of pad tokens.
        while length > 0:
            t, h, w = next(remaining, (0, 0, 0))
            h, w = h // merge, w // merge
            if t * h * w == 0 or t * h * w > length:
                raise ValueError(
                    f"a run of {length} visual tokens does not match the grid ({t}, {h}, {w})"
                )
            chunks.append(start + _grid_index(t, h, w))
            start += max(t, h, w) if rule == "original" else max(h, w)
            length -= t * h * w
    if next(remaining, None) is not None:
        raise ValueError("there are more grids than runs of visual tokens")
    positions = torch.cat(chunks, dim=1) if chunks else torch.zeros(3, 0, dtype=torch.long)
    # Generation continues from the largest position of the last prompt token, on every axis.
    following = int(positions[:, -1].max()) + 1 if positions.shape[1] else 0
    return positions, following


def _grid_index(t: int, h: int, w: int) -> torch.Tensor:
    """Row-major (t, h, w) indices: int64 [3, t*h*w]."""
    return torch.stack(
        torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
    ).flatten(1)


def prompt_positions(
    config: Qwen2VLConfig,
    input_ids: torch.Tensor,
    packing: Packing,
    image_grids: Sequence[Grid],
    video_grids: Sequence[Grid],
) -> torch.Tensor:
    """Packed positions int64 [3, T] of the real tokens of prompts [B, S].

    image_grids, video_grids: of all prompts, in their order.
    Raises ValueError where the runs of visual tokens do not match the grids.
    """
    grids = {"image": iter(image_grids), "video": iter(video_grids)}
    merge = config.vision.spatial_merge_size
    packed = []
    for row, start in zip(packing.rows(input_ids), packing.starts, strict=True):
        ids = row.tolist()
        positions, _ = mrope_positions(
            ids, _prompt_grids(ids, grids, config), config.pad_token_ids, config.mrope, merge
        )
        packed.append(positions + start)
    for kind, remaining in grids.items():
        left = len(list(remaining))
        if left:
            raise ValueError(f"there are {left} more {kind} grids than runs of {kind} tokens")
    return torch.cat(packed, dim=1)


def _prompt_grids(
    ids: Sequence[int], grids: Mapping[str, Iterator[Grid]], config: Qwen2VLConfig
) -> list[Grid]:
    """Takes the grids of one prompt from those of images and videos, in prompt order."""
    kinds = {config.video_token_id: "video", config.image_token_id: "image"}
    merge = config.vision.spatial_merge_size
    prompt_grids: list[Grid] = []
    remaining = 0  # tokens of the current medium
    for kind in (kinds[token] for token in ids if token in kinds):
        if remaining == 0:
            grid = next(grids[kind], None)
            if grid is None:
                raise ValueError(f"there are more runs of {kind} tokens than {kind} grids")
            prompt_grids.append(grid)
            t, h, w = grid
            remaining = t * (h // merge) * (w // merge)
        remaining -= 1
    return prompt_grids
