"""Turns a padded batch of prompts and its grids into M-RoPE positions, and goes on from a cache.

It does not know pixels or weights; the rule for one prompt is in `mediamill.model.layers.rope`.
"""

from collections.abc import Iterator, Sequence

import torch

from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig
from mediamill.model.layers.cache import KeyValueCache
from mediamill.model.layers.padding import Packing
from mediamill.model.layers.rope import Grid, mrope_positions


def prompt_grids(
    ids: Sequence[int],
    images: Iterator[Grid],
    videos: Iterator[Grid],
    image_id: int,
    video_id: int,
    merge: int = 2,
) -> list[Grid]:
    """The grids that belong to one prompt, taken from two streams in the order in which the prompt
    shows them.

    Raises ValueError when a stream ends too soon.
    """
    grids: list[Grid] = []
    remaining = 0
    for token in ids:
        if token not in (image_id, video_id):
            continue
        if remaining == 0:
            grid = next(images if token == image_id else videos, None)
            if grid is None:
                kind = "image" if token == image_id else "video"
                raise ValueError(f"there are more runs of {kind} tokens than {kind} grids")
            grids.append(grid)
            t, h, w = grid
            remaining = t * (h // merge) * (w // merge)
        remaining -= 1
    return grids


def prompt_positions(
    config: Qwen2VLConfig,
    rows: Sequence[Sequence[int]],
    image_grids: Sequence[Grid],
    video_grids: Sequence[Grid],
    starts: Sequence[int],
) -> torch.Tensor:
    """Packed positions int64 [3, T] of rows of real token ids, each from its own start on.

    Raises ValueError where the runs of visual tokens do not match the grids.
    """
    images, videos = iter(image_grids), iter(video_grids)
    image_id, video_id = config.image_token_id, config.video_token_id
    merge = config.vision.spatial_merge_size
    packed = []
    for ids, start in zip(rows, starts, strict=True):
        grids = prompt_grids(ids, images, videos, image_id, video_id, merge)
        positions, _ = mrope_positions(ids, grids, (image_id, video_id), config.mrope, merge)
        packed.append(positions + start)
    for kind, left in (("image", list(images)), ("video", list(videos))):
        if left:
            raise ValueError(f"there are {len(left)} more {kind} grids than runs of {kind} tokens")
    return torch.cat(packed, dim=1)


def counted_positions(packing: Packing, starts: Sequence[int]) -> torch.Tensor:
    """Packed positions int64 [3, T] of text: every row's real tokens, counted from its start."""
    runs = [torch.arange(start, start + n) for start, n in zip(starts, packing.rows, strict=True)]
    return torch.cat(runs).expand(3, -1)


def given_positions(position_ids: torch.Tensor, packing: Packing, packs: bool) -> torch.Tensor:
    """Packed positions int64 [3, T] from the caller's.

    position_ids: [B, S] for text, [3, B, S], or [4, B, S] whose first row counts the tokens; where
        that count breaks off, and `packs` is true, another sequence begins, which does not see
        the one before. B may be 1 for all rows alike. Raises ValueError for another shape.
    """
    batch, width = packing.shape
    shape = tuple(position_ids.shape)
    fits = shape[-2:] in ((batch, width), (1, width))
    axes = shape[0] if len(shape) == 3 else 1
    if not fits or len(shape) not in (2, 3) or axes not in (1, 3, 4):
        raise ValueError(
            f"position_ids is {list(shape)}, expected [{batch}, {width}], [3, {batch}, {width}] or "
            f"[4, {batch}, {width}]"
        )
    cells = position_ids.reshape(axes, -1, width).expand(-1, batch, -1)
    if axes == 4:
        if packs:
            breaks = torch.ones_like(cells[0], dtype=torch.bool)
            breaks[:, 1:] = cells[0, :, 1:] != cells[0, :, :-1] + 1
            packing.split(breaks)
        cells = cells[1:]
    return packing.pack(cells.permute(1, 2, 0)).T.expand(3, -1)


def past_starts(cache: KeyValueCache | None, rows: int) -> tuple[list[int], list[int]]:
    """Per row: the tokens in the cache, and the position of the next one."""
    if cache is None:
        return [0] * rows, [0] * rows
    past = cache.lengths.tolist()
    deltas = [0] * rows if cache.rope_deltas is None else cache.rope_deltas.tolist()
    return past, [n + delta for n, delta in zip(past, deltas, strict=True)]


def rope_deltas(
    positions: torch.Tensor, packing: Packing, past: Sequence[int], starts: Sequence[int]
) -> torch.Tensor:
    """1 + the largest position of each row - its tokens, those of the past included: int64 [B]."""
    deltas = []
    for row, n, start in zip(
        torch.split(positions, packing.rows, dim=1), past, starts, strict=True
    ):
        largest = torch.tensor(start - 1, device=positions.device)
        if row.shape[1]:
            largest = torch.maximum(largest, row.max())
        deltas.append(largest + 1 - n - row.shape[1])
    return torch.stack(deltas)
