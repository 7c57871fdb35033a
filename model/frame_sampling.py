"""Turns a number of frames and a rate into the indices of the frames that the model is to see.

The reference's sampling without its failures: one frame, no frames asked for, one index too many.
"""

import math
from dataclasses import dataclass

import torch

_PAIR = 2  # frames in one temporal patch


@dataclass(frozen=True)
class VideoRules:
    """Which frames of a video are looked at, and how large they may be.

    fps: frames looked at per second of video. None only if num_frames is set.
    num_frames: looked at so many frames instead (it wins over fps).
    min_frames, max_frames: with fps, at least and at most so many (of what there is).
    min_pixels, max_pixels: limits of height * width of one frame; None = the checkpoint's own.
    """

    fps: float | None = 2.0
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.num_frames is None and self.fps is None:
            raise ValueError("fps and num_frames are both None, expected one of them")
        for key in ("fps", "num_frames", "min_frames", "max_frames"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"{key} is {value}, expected a number above 0")


def sample_indices(total_frames: int, fps: float, rules: VideoRules) -> list[int]:
    """Indices, ascending, of the frames to look at.

    total_frames, fps: of the video, in frames and frames per second. Gives an even number of
    frames, spread evenly from the first one; the only frame if there is one. Where the reference's
    sampling works, the result is the same. Raises ValueError for no frames.
    """
    if total_frames < 1:
        raise ValueError(f"total_frames is {total_frames}, expected at least 1")
    if total_frames == 1:
        return [0]
    count = _count(total_frames, fps, rules)
    # float32 as in the reference: beyond some hundred frames its rounding decides single indices.
    steps = torch.arange(0, total_frames, total_frames / count).int()[:count]
    return [min(int(index), total_frames - 1) for index in steps]


def sampling_note(total_frames: int, fps: float, rules: VideoRules) -> str | None:
    """What clamped the number of frames, in words; None if nothing did."""
    if total_frames == 1:
        return "one frame only"
    count = _count(total_frames, fps, rules)
    if rules.num_frames is not None:
        if count == rules.num_frames:
            return None
        return (
            f"{count} frames instead of num_frames {rules.num_frames} (of {total_frames}, in pairs)"
        )
    wanted = total_frames / fps * (rules.fps or 0.0)
    if wanted > rules.max_frames and count < total_frames - 1:
        return f"{count} frames instead of {wanted:.1f}: max_frames {rules.max_frames}"
    if wanted > total_frames:
        return f"{count} frames instead of {wanted:.1f}: there are {total_frames}"
    if wanted < rules.min_frames:
        return f"{count} frames instead of {wanted:.1f}: min_frames {rules.min_frames}"
    return None


def _count(total: int, fps: float, rules: VideoRules) -> int:
    """An even number of frames from 2 to total."""
    if rules.num_frames is not None:
        count = round(rules.num_frames / _PAIR) * _PAIR
        return max(_PAIR, min(count, _even(total)))
    ceiling = _even(min(rules.max_frames, total))
    wanted = min(max(total / fps * (rules.fps or 0.0), rules.min_frames), ceiling, total)
    return max(_PAIR, _even(wanted))


def _even(count: float) -> int:
    return math.floor(count / _PAIR) * _PAIR
