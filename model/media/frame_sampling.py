"""Computes which frames of a video the model sees, from the number of frames and their rate.

The rules are those of the reference (Qwen2VLVideoProcessor.sample_frames of transformers), which
crashes on about one length in twenty-five, where its float32 steps give one index too many, and
where less than one group of frames would be left. With N frames at `video_fps`, T =
temporal_patch_size frames in a group and floor_T(x) = T * floor(x / T), it samples

    num_frames given:  n = T * round(num_frames / T), at most floor_T(N), at least T
    otherwise:         n = floor_T(N / video_fps * fps), where the value in brackets is first raised
                       to min_frames and then lowered to floor_T(min(max_frames, N)); at least T

frames, at the indices floor(i * N / n) for i = 0..n-1, computed in float32.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError
from mediamill.model.media import option_values
from mediamill.model.media.image_rules import ImageRules, preprocessor_options
from mediamill.model.media.limit_names import LimitName

DEFAULT_FPS = 2.0
DEFAULT_MIN_FRAMES = 4
DEFAULT_MAX_FRAMES = 768
DEFAULT_VIDEO_TOKENS = 128_000
_COUNTS = ("num_frames", "min_frames", "max_frames", "max_video_tokens")
_BUDGETS = ("total_pixels", "max_tokens")
_READERS: dict[str, Callable[[str, str, Any], Any]] = {
    **dict.fromkeys(_COUNTS, option_values.positive),
    "do_sample_frames": option_values.switch,
    "cap_pixels_per_frame": option_values.switch,
    "fps": option_values.number,
}
SAMPLING_KEYS = frozenset(_READERS)


@dataclass(frozen=True)
class VideoRules:
    """Which frames of a video the model sees, and how large they may be.

    None means that a rule is not set; the default is then in parentheses.

    fps: frames sampled per second of video (2, unless num_frames is set).
    num_frames: number of sampled frames, instead of fps.
    min_frames, max_frames: with fps, limits on the number of sampled frames (4 and 768), as far as
        the video has that many.
    min_pixels, max_pixels: limits on height * width of one frame (those of the checkpoint).
    do_sample_frames: False uses all frames (True).
    cap_pixels_per_frame: lowers max_pixels, at least to 1.05 min_pixels, so that all frames take
        at most nine tenths of max_video_tokens (False).
    max_video_tokens: visual tokens, for cap_pixels_per_frame only (128000).
    total_pixels: limit on the pixels of all sampled frames after the resize (no limit).
    max_tokens: limit on the visual tokens of the video (no limit). With total_pixels or max_tokens
        the video is also made to fit the model's context, as pixel_budget.py says.
    shrink: divides the number of sampled frames that the other rules give.
    Raises ValueError for values out of range, and for fps and num_frames together.
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
    shrink: int = 1

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.fps is not None:
            raise ValueError(
                f"found both fps ({self.fps}) and num_frames ({self.num_frames}), expected one"
            )
        for key in ("fps", *_COUNTS, *_BUDGETS):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{key} is {value}, expected a number above 0")

    def with_defaults(self, defaults: "VideoRules") -> "VideoRules":
        """Returns these rules, with those that are not set taken from `defaults`.

        If fps or num_frames is set, neither of them nor do_sample_frames is taken from `defaults`:
        a caller who sets a number of frames wants them sampled.
        """
        if self.fps is not None or self.num_frames is not None:
            defaults = replace(defaults, fps=None, num_frames=None, do_sample_frames=None)
        return replace(
            defaults, **{name: value for name, value in vars(self).items() if value is not None}
        )

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str) -> "VideoRules":
        """Reads the rules from options by the reference's keys; other keys are ignored.

        where: names the source in errors. Raises ModelError (a ValueError) for malformed values.
        """
        try:
            return cls(**option_values.read_set(options, _READERS, where))
        except ValueError as error:
            raise ModelError(f"{where}: {error}") from None

    @classmethod
    def from_checkpoint(cls, folder: str | Path | Folder) -> "VideoRules":
        """Reads the rules from the checkpoint's options for videos; without a file none is set."""
        where, options = preprocessor_options(Folder.of(folder), "video") or ("", {})
        return cls.from_options(options, where)


def max_pixels_for(frames: int, pixels: ImageRules, rules: VideoRules) -> int:
    """Returns the limit on height * width of each of `frames` frames.

    With cap_pixels_per_frame it is, by the reference's rule of that name,
    max(min(max_pixels, total * T // frames), 1.05 * min_pixels), where total is 0.9 *
    max_video_tokens * factor ** 2 and T = temporal_patch_size; otherwise max_pixels.
    """
    if not rules.cap_pixels_per_frame:
        return pixels.max_pixels
    tokens = rules.max_video_tokens or DEFAULT_VIDEO_TOKENS
    # Rounded as in the reference: first the total, then the share of a frame.
    total = int(tokens * pixels.factor * pixels.factor * 0.9)
    share = total * pixels.temporal_patch_size // frames
    return max(min(pixels.max_pixels, share), int(pixels.min_pixels * 1.05))


def min_sampled_frames(total_frames: int, count: int, rules: VideoRules, group: int = 2) -> int:
    """Returns the fewest frames to which `count` sampled frames may be lowered, by min_frames."""
    if rules.do_sample_frames is False or total_frames < group:
        return count
    low = min(_frame_limits(rules)[0], count)
    return max(group, _round_down(low, group))


def sample_indices(
    total_frames: int, fps: float, rules: VideoRules, group: int = 2, max_count: int | None = None
) -> list[int]:
    """Returns the indices of the sampled frames, ascending, spread evenly from the first frame.

    Their number is a multiple of `group`. All frames are used if there are fewer than `group`, or
    if do_sample_frames is False. The result is the reference's, wherever the reference works.

    total_frames, fps: of the video. group: frames of one temporal patch.
    max_count: limit on the number of indices, a multiple of `group`; None = no limit.
    Raises ValueError if total_frames is 0.
    """
    if total_frames < 1:
        raise ValueError(f"total_frames is {total_frames}, expected at least 1")
    if total_frames < group or rules.do_sample_frames is False:
        return list(range(total_frames))
    count = _count(total_frames, fps, rules, group)
    count = count if max_count is None else min(count, max_count)
    # float32 as in the reference: from some hundred frames on, rounding decides single indices.
    steps = torch.arange(0, total_frames, total_frames / count).int()[:count]
    return [min(int(index), total_frames - 1) for index in steps]


def sampling_clamp(
    total_frames: int, fps: float, rules: VideoRules, group: int = 2
) -> tuple[LimitName, str] | None:
    """Returns the limit that clamped the number of frames, and a note; None if nothing did."""
    if rules.do_sample_frames is False:
        return None
    if total_frames < group:
        note = "one frame only" if total_frames == 1 else f"{total_frames} frames only"
        return "frames", note
    count = _count(total_frames, fps, rules, group)
    if (full := _full_count(total_frames, fps, rules, group)) > count:
        return "max_frames", f"{count} frames instead of {full}: retries.smaller"
    if rules.num_frames is not None:
        if count == rules.num_frames:
            return None
        groups = "in pairs" if group == 2 else f"in groups of {group}"
        note = (
            f"{count} frames instead of num_frames {rules.num_frames} (of {total_frames}, {groups})"
        )
        return "num_frames" if rules.num_frames <= total_frames else "frames", note
    requested = total_frames / fps * (rules.fps or DEFAULT_FPS)
    low, high = _frame_limits(rules)
    if requested > high and count < total_frames - 1:
        return "max_frames", f"{count} frames instead of {requested:.1f}: max_frames {high}"
    if requested > total_frames:
        return "frames", f"{count} frames instead of {requested:.1f}: there are {total_frames}"
    if requested < low:
        return "min_frames", f"{count} frames instead of {requested:.1f}: min_frames {low}"
    return None


def _frame_limits(rules: VideoRules) -> tuple[int, int]:
    low = DEFAULT_MIN_FRAMES if rules.min_frames is None else rules.min_frames
    return low, DEFAULT_MAX_FRAMES if rules.max_frames is None else rules.max_frames


def _count(total: int, fps: float, rules: VideoRules, group: int) -> int:
    """Returns the number of sampled frames: a multiple of `group`, from `group` to `total`."""
    return max(group, _round_down(_full_count(total, fps, rules, group) / rules.shrink, group))


def _full_count(total: int, fps: float, rules: VideoRules, group: int) -> int:
    """Returns the same without `shrink`."""
    if rules.num_frames is not None:
        count = round(rules.num_frames / group) * group
        return max(group, min(count, _round_down(total, group)))
    low, high = _frame_limits(rules)
    highest = _round_down(min(high, total), group)
    requested = min(max(total / fps * (rules.fps or DEFAULT_FPS), low), highest, total)
    return max(group, _round_down(requested, group))


def _round_down(count: float, group: int) -> int:
    return math.floor(count / group) * group
