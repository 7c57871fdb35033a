"""Makes the pictures of media that are prepared for the model: patches back to frames."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mediamill.model.inputs import VisualKind
from mediamill.pipeline.fetching.media_uris import shown
from mediamill.pipeline.inspect.seen import Frame, Pixels, SeenMedium, ShownSize

_GROUP = 2  # frames of a video's patch


def seen_of_patches(
    patches: memoryview,
    grids: Sequence[int],
    kinds: Sequence[VisualKind],
    receipts: Sequence[Mapping[str, Any]],
    merge_size: int = 2,
    size: ShownSize | None = None,
) -> tuple[SeenMedium, ...]:
    """Returns the media of a prepared row, one for each of its receipts.

    patches, grids, kinds, receipts: the row's values of these columns of `prepared_schema`; grids
        is t, h, w of each medium, one after the other.
    size: of the frames, only the most that are shown; their pixels stay as the model sees them.
    """
    shown_size = size or ShownSize()
    values = np.frombuffer(patches, np.uint8)
    shapes = [tuple(grids[start : start + 3]) for start in range(0, len(grids), 3)]
    # One patch size holds for all media of a row: a video's patch has two frames.
    weights = [t * h * w * (1 if kind == "image" else _GROUP)
               for (t, h, w), kind in zip(shapes, kinds, strict=True)]  # fmt: skip
    side = math.isqrt(values.size // (3 * max(sum(weights), 1)))
    media, start = [], 0
    for shape, kind, weight, receipt in zip(shapes, kinds, weights, receipts, strict=True):
        stop = start + weight * 3 * side * side
        frames = frames_of_patches(values[start:stop], shape, kind, merge_size)
        start = stop
        media.append(_medium(frames, kind, receipt, shown_size))
    return tuple(media)


def frames_of_patches(
    values: Pixels, grid_thw: Sequence[int], kind: VisualKind, merge_size: int = 2
) -> Pixels:
    """uint8 values of the patches of one medium -> uint8 [frames, H, W, 3].

    A video's last frame is there twice if it was repeated to fill a group.
    """
    groups, rows, columns = grid_thw
    slices = 1 if kind == "image" else _GROUP
    side = math.isqrt(values.size // (groups * rows * columns * 3 * slices))
    merged = (groups, rows // merge_size, columns // merge_size, merge_size, merge_size)
    patches = values.reshape(*merged, 3, slices, side, side)
    # -> group, slice, (row of tokens, row in it, row of pixels), (the same of columns), colour
    frames = patches.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
    return frames.reshape(groups * slices, rows * side, columns * side, 3)


def _medium(
    frames: Pixels, kind: VisualKind, receipt: Mapping[str, Any], size: ShownSize
) -> SeenMedium:
    indices: Sequence[int | None] = receipt["frame_indices"] or (None,)
    times: Sequence[float | None] = receipt["frame_times_s"] or (None,) * len(indices)
    count = len(indices)
    numbers = np.unique(np.linspace(0, count - 1, min(size.frames, count)).round().astype(int))
    return SeenMedium(
        kind,
        shown(receipt.get("uri") or ""),
        tuple(Frame(frames[i].copy(), indices[i], times[i]) for i in numbers.tolist()),
        count,
        frames.shape[1],
        frames.shape[2],
    )
