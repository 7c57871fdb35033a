"""Turns the length of a video into the indices of the frames that the model looks at.

Knows numbers only. The rules are the reference's, without its faults: it crashes on about one
length in twenty-five, where its float32 steps give one index too many, and where less than one
group of frames would be left.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError
from mediamill.model.media import option_values as values
from mediamill.model.media.image_rules import ImageRules, preprocessor_options
from mediamill.model.media.limit_names import LimitName

DEFAULT_FPS = 2.0
DEFAULT_MIN_FRAMES = 4
DEFAULT_MAX_FRAMES = 768
DEFAULT_VIDEO_TOKENS = 128_000
_COUNTS = ("num_frames", "min_frames", "max_frames", "max_video_tokens")
_BUDGETS = ("total_pixels", "max_tokens")
_SWITCHES = ("do_sample_frames", "cap_pixels_per_frame")
SAMPLING_KEYS = frozenset(("fps", *_COUNTS, *_SWITCHES))


@dataclass(frozen=True)
class VideoRules:
    """Which frames of a video are looked at, and how large they may be. None = not said.

    fps: frames looked at per second of video; not said, and no num_frames either: 2.
    num_frames: looked at so many frames instead.
    min_frames, max_frames: with fps, at least (4) and at most (768) so many, of what there is.
    min_pixels, max_pixels: limits of height * width of one frame; not said: the checkpoint's own.
    do_sample_frames: False looks at all frames. Not said: True.
    cap_pixels_per_frame: limits a video's frames together to nine tenths of max_video_tokens
        (128000) visual tokens, by lowering max_pixels, at least to 1.05 min_pixels. Not said: no.
    total_pixels: of all frames looked at together, after the resize. max_tokens: visual tokens of
        the video. With either of them the video is made to fit the model as well: first the frames
        get smaller, down to min_pixels, then fewer, down to min_frames. Not said: no such limit.
    Raises ValueError for values without sense, and for fps and num_frames together.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    do_sample_frames: bool | None = None
    cap_pixels_per_frame: bool | None = None
    max_video_tokens: int | None = None
    total_pixels: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.fps is not None:
            raise ValueError(
                f"found both fps ({self.fps}) and num_frames ({self.num_frames}), expected one"
            )
        for key in ("fps", *_COUNTS, *_BUDGETS):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{key} is {value}, expected a number above 0")

    def over(self, base: "VideoRules") -> "VideoRules":
        """These rules, and what they do not say from `base`.

        fps or num_frames, when said here, take the place of both of base's, and of its switch
        do_sample_frames: who names a number of frames wants them sampled.
        """
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        if self.fps is not None or self.num_frames is not None:
            base = replace(base, fps=None, num_frames=None, do_sample_frames=None)
        return replace(base, **{key: value for key, value in said.items() if value is not None})

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str) -> "VideoRules":
        """What the reference's own keys say of frames; other keys are ignored.

        where: names their source in errors. Raises ModelError (a ValueError) for malformed values.
        """
        found: dict[str, Any] = {}
        for key in _COUNTS:
            if options.get(key) is not None:
                found[key] = values.positive(where, key, options[key])
        for key in _SWITCHES:
            if options.get(key) is not None:
                found[key] = values.switch(where, options, key, False)
        if options.get("fps") is not None:
            found["fps"] = values.number(where, options, "fps", 0.0)
        try:
            return cls(**found)
        except ValueError as error:
            raise ModelError(f"{where}: {error}") from None

    @classmethod
    def from_checkpoint(cls, folder: str | Path | Folder) -> "VideoRules":
        """What the checkpoint's file for videos says of frames; nothing, if there is no file."""
        found = preprocessor_options(Folder.of(folder), "video")
        return cls() if found is None else cls.from_options(found[1], found[0])


def max_pixels_for(frames: int, pixels: ImageRules, rules: VideoRules) -> int:
    """The limit of height * width for each of so many frames, with cap_pixels_per_frame if set."""
    if not rules.cap_pixels_per_frame:
        return pixels.max_pixels
    tokens = rules.max_video_tokens or DEFAULT_VIDEO_TOKENS
    # The reference's arithmetic, with its rounding: first all pixels, then a frame's share.
    total = int(tokens * pixels.factor * pixels.factor * 0.9)
    share = total * pixels.temporal_patch_size // frames
    return max(min(pixels.max_pixels, share), int(pixels.min_pixels * 1.05))


def fewest_frames(total_frames: int, count: int, rules: VideoRules, group: int = 2) -> int:
    """The least number of frames that a limit on all of them may leave of `count`."""
    if rules.do_sample_frames is False or total_frames < group:
        return count
    low = min(_frame_limits(rules)[0], count)
    return max(group, _whole(low, group))


def sample_indices(
    total_frames: int, fps: float, rules: VideoRules, group: int = 2, most: int | None = None
) -> list[int]:
    """Indices, ascending, of the frames to look at.

    total_frames, fps: of the video, in frames and frames per second. group: frames of one temporal
    patch. Gives a multiple of `group`, spread evenly from the first frame; all frames if there are
    less than `group`, or if do_sample_frames is False. Where the reference's sampling works, the
    result is the same. most: at most so many, a multiple of `group`.
    Raises ValueError for no frames.
    """
    if total_frames < 1:
        raise ValueError(f"total_frames is {total_frames}, expected at least 1")
    if total_frames < group or rules.do_sample_frames is False:
        return list(range(total_frames))
    count = _count(total_frames, fps, rules, group)
    count = count if most is None else min(count, most)
    # float32 as in the reference: beyond some hundred frames its rounding decides single indices.
    steps = torch.arange(0, total_frames, total_frames / count).int()[:count]
    return [min(int(index), total_frames - 1) for index in steps]


def sampling_clamp(
    total_frames: int, fps: float, rules: VideoRules, group: int = 2
) -> tuple[LimitName, str] | None:
    """What clamped the number of frames, and in words; None if nothing did."""
    if rules.do_sample_frames is False:
        return None
    if total_frames < group:
        only = "one frame only" if total_frames == 1 else f"{total_frames} frames only"
        return "frames", only
    count = _count(total_frames, fps, rules, group)
    if rules.num_frames is not None:
        if count == rules.num_frames:
            return None
        multiple = "in pairs" if group == 2 else f"in groups of {group}"
        return (
            "num_frames" if rules.num_frames <= total_frames else "frames",
            f"{count} frames instead of num_frames {rules.num_frames} (of {total_frames}, "
            f"{multiple})",
        )
    wanted = total_frames / fps * (rules.fps or DEFAULT_FPS)
    low, high = _frame_limits(rules)
    if wanted > high and count < total_frames - 1:
        return "max_frames", f"{count} frames instead of {wanted:.1f}: max_frames {high}"
    if wanted > total_frames:
        return "frames", f"{count} frames instead of {wanted:.1f}: there are {total_frames}"
    if wanted < low:
        return "min_frames", f"{count} frames instead of {wanted:.1f}: min_frames {low}"
    return None


def _frame_limits(rules: VideoRules) -> tuple[int, int]:
    low = DEFAULT_MIN_FRAMES if rules.min_frames is None else rules.min_frames
    return low, DEFAULT_MAX_FRAMES if rules.max_frames is None else rules.max_frames


def _count(total: int, fps: float, rules: VideoRules, group: int) -> int:
    """A multiple of `group`, from `group` to total."""
    if rules.num_frames is not None:
        count = round(rules.num_frames / group) * group
        return max(group, min(count, _whole(total, group)))
    low, high = _frame_limits(rules)
    ceiling = _whole(min(high, total), group)
    wanted = min(max(total / fps * (rules.fps or DEFAULT_FPS), low), ceiling, total)
    return max(group, _whole(wanted, group))


def _whole(count: float, group: int) -> int:
    return math.floor(count / group) * group
