"""Detects the times at which new scenes of a video begin, in one pass over its frames.

A cut: the change from one frame to the next is at least `threshold` and three times the mean of the
changes around it (so steady motion is no cut), and every frame of the last fifth of a second
differs from every frame of the next (so a flash is no cut).
A fade: the contrast goes down to a plain frame of any colour, and comes up again. The new scene
begins with the first frame that is not plain. Dissolves are not detected.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from mediamill.model.errors import MediaError
from mediamill.model.media.frame_reader import FrameReader
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile, Source
from mediamill.model.media.video import video_format
from mediamill.model.media.video_file import check_sample_count, conversion_errors_as_media_errors

_SIDE, _BLOCKS = 32, 8  # pixels of a thumbnail's side; blocks of a side
_MIN_RATIO = 3.0  # of a cut's change to the mean change around it
_NEIGHBOURHOOD_S, _FLASH_S = 0.4, 0.2
_MAX_NEIGHBOURHOOD = 12  # frames on either side
_PLAIN_CONTRAST = 0.02  # up to which a frame shows nothing; 1 is half black and half white


@dataclass(frozen=True)
class SceneRules:
    """What begins a new scene.

    threshold: 0..1, how much of the picture has to change at once; a lower one finds more cuts.
    min_s: shortest scene in seconds; of cuts that are nearer, the first one counts.
    Raises ValueError for values out of range.
    """

    threshold: float = 0.1
    min_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, expected above 0 and at most 1")
        if not 0 <= self.min_s < math.inf:
            raise ValueError(f"min_s is {self.min_s}, expected a number from 0 on")


def scene_cuts(
    source: Source, rules: SceneRules | None = None, limits: MediaLimits | None = None
) -> list[float]:
    """Returns the times at which new scenes begin, ascending, without the first scene's 0.

    Times are seconds from the first frame. Raises MediaError as `decode_video` for the whole video.
    """
    rules, limits = rules or SceneRules(), limits or MediaLimits()
    media_file = MediaFile.of(source)
    file_format = video_format(media_file)
    check_sample_count(media_file, file_format, limits)
    reader = FrameReader(file_format, limits)
    frames = _frame_summaries(reader, media_file, limits)
    cuts = [0.0]
    for time_s in _scene_starts(frames, reader, rules.threshold):
        if time_s - cuts[-1] >= rules.min_s:
            cuts.append(time_s)
    return cuts[1:]


@dataclass(frozen=True)
class _FrameSummary:
    """One frame, reduced to what the detection needs.

    blocks: float32 [_BLOCKS, _BLOCKS, 3], mean colours, 0..1.
    contrast: 0..1, twice the standard deviation of the brightness.
    """

    time_s: float
    blocks: npt.NDArray[np.float32]
    contrast: float

    def change_from(self, other: "_FrameSummary") -> float:
        """Returns 0..1: the mean difference of the blocks' colours; 1 is a quarter of the range."""
        return min(1.0, 4 * float(np.abs(self.blocks - other.blocks).mean()))


def _frame_summaries(
    reader: FrameReader, media_file: MediaFile, limits: MediaLimits
) -> Iterator[_FrameSummary]:
    reformatter = VideoReformatter()
    first: int | None = None
    time_s = 0.0
    for timestamp, frame in reader.read(media_file, skip_loop_filter=True):
        first = timestamp if first is None else first
        # Some containers have times in decoding order; time must not run backwards. The formula is
        # Timeline.seconds, to the last bit: a window may begin at one of these times.
        time_base = reader.time_base
        time_s = max(time_s, (timestamp - first) * time_base.numerator / time_base.denominator)
        if time_s > limits.max_duration_s:
            raise MediaError(
                "decode_too_large",
                f"more than {time_s:.1f} s of the {reader.file_format.label} would have to be "
                f"decoded; the limit is {limits.max_duration_s:g} s",
            )
        with conversion_errors_as_media_errors(reader.file_format):
            scaled = reformatter.reformat(
                frame, _SIDE, _SIDE, "rgb24", interpolation="AREA", threads=1
            )
            pixels = scaled.to_ndarray().astype(np.float32) / 255
        block = _SIDE // _BLOCKS
        blocks = pixels.reshape(_BLOCKS, block, _BLOCKS, block, 3).mean((1, 3))
        yield _FrameSummary(time_s, blocks, 2 * float(pixels.mean(2).std()))


def _scene_starts(
    frames: Iterator[_FrameSummary], reader: FrameReader, threshold: float
) -> Iterator[float]:
    """Yields the time of each frame that begins a new scene, in seconds."""
    neighbourhood = flash = 2
    window: deque[_FrameSummary] = deque()
    changes: deque[float] = deque()  # of each frame of the window from the one before it
    current = 0  # the frame that is decided on, within the window
    fade = _FadeDetector()
    while True:
        while len(window) <= current + neighbourhood and (frame := next(frames, None)):
            if not window:
                neighbourhood = _frame_count(_NEIGHBOURHOOD_S, reader.rate)
                flash = _frame_count(_FLASH_S, reader.rate)
            changes.append(window[-1].change_from(frame) if window else 0.0)
            window.append(frame)
        if current >= len(window):
            return
        is_jump = _stands_out(changes, current, neighbourhood, threshold)
        fade_start = fade.add(window[current], is_jump)
        if is_jump and _is_lasting(window, changes[current], current, flash, threshold):
            yield window[current].time_s
            fade = _FadeDetector()
        elif fade_start is not None:
            yield fade_start
        current += 1
        if current > neighbourhood:
            window.popleft()
            changes.popleft()
            current -= 1


def _frame_count(seconds: float, rate: float) -> int:
    return max(2, min(_MAX_NEIGHBOURHOOD, round(seconds * rate)))


def _stands_out(changes: deque[float], current: int, neighbourhood: int, threshold: float) -> bool:
    """Whether the change to a frame is large, and much larger than the changes around it."""
    change, stop = changes[current], min(len(changes), current + neighbourhood + 1)
    if current == 0 or change < threshold:
        return False
    first = max(1, current - neighbourhood)
    neighbours = [changes[index] for index in range(first, stop) if index != current]
    return not neighbours or change >= _MIN_RATIO * sum(neighbours) / len(neighbours)


def _is_lasting(
    window: deque[_FrameSummary], change: float, current: int, flash: int, threshold: float
) -> bool:
    """Whether all frames before a change differ from all frames after it: it is no flash."""
    before = [window[index] for index in range(max(0, current - flash), current)]
    after = [window[index] for index in range(current, min(len(window), current + flash))]
    min_change = max(threshold, change / 2)
    return all(earlier.change_from(later) >= min_change for earlier in before for later in after)


class _FadeDetector:
    """Follows the contrast of frames down to a plain frame and up again."""

    def __init__(self) -> None:
        self.scene_seen = False  # a scene was seen, and no jump to a plain frame ended it
        self.is_plain = False
        self.min_contrast = 1.0
        self.rise_s: float | None = None  # when the contrast began to rise

    def add(self, frame: _FrameSummary, is_jump: bool) -> float | None:
        """Takes the next frame; returns when a new scene began, if it faded in with this frame.

        is_jump: the frame is very different from the one before.
        """
        if frame.contrast <= _PLAIN_CONTRAST:
            self.is_plain, self.scene_seen = True, self.scene_seen and not is_jump
            if self.scene_seen and frame.contrast <= self.min_contrast:
                self.min_contrast, self.rise_s = frame.contrast, None
            elif self.scene_seen and self.rise_s is None:
                self.rise_s = frame.time_s
            return None
        start_s = frame.time_s if self.rise_s is None else self.rise_s
        is_fade = self.is_plain and self.scene_seen
        self.scene_seen, self.is_plain, self.min_contrast, self.rise_s = True, False, 1.0, None
        return start_s if is_fade else None
