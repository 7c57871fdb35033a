"""Turns the frames of a video into the times at which a new scene begins.

One pass, in which no more than some twenty small pictures are held. Two kinds of change are found:

A cut: from one frame to the next the picture changes by `threshold`, and by three times as much as
around it, so that steady motion is none; and none of the frames of the last fifth of a second looks
like one of the next, so that a flash is none.

A fade: the picture goes down to a plain one, of whatever colour, and another one comes up. The new
scene begins with the first frame that has something to be seen again.

One scene that dissolves into another is not found.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from mediamill.model.errors import MediaError
from mediamill.model.media.content import MediaFile, Source
from mediamill.model.media.frame_reader import FrameReader
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.video import as_video
from mediamill.model.media.video_file import check_samples

_SIDE, _BLOCKS = 32, 8  # pixels of a side of the small picture; blocks of a side
_STANDS_OUT = 3.0  # times the changes around
_AROUND_S, _FLASH_S = 0.4, 0.2
_MOST_AROUND = 12  # frames on either side
_PLAIN = 0.02  # contrast of a picture that shows nothing: of 1, where half is black and half white


@dataclass(frozen=True)
class SceneRules:
    """What begins a new scene.

    threshold: 0..1, how much of the picture has to change at once; less finds more.
    min_s: seconds that a scene lasts at least; of cuts that are nearer, the first one counts.
    Raises ValueError for values without sense.
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
    """Seconds from the first frame at which new scenes begin, ascending; the first one's 0 is none.

    Raises MediaError as `decode_video` for the whole video.
    """
    rules, limits = rules or SceneRules(), limits or MediaLimits()
    content = MediaFile.of(source)
    found = as_video(content)
    check_samples(content, found, limits)
    reader = FrameReader(found, limits)
    looks = _looks(reader, content, limits)
    cuts: list[float] = []
    last = 0.0
    for at in _changes(looks, reader, rules.threshold):
        if at - last >= rules.min_s:
            cuts.append(at)
            last = at
    return cuts


@dataclass(frozen=True)
class _Look:
    """One frame. blocks: float32 [_BLOCKS, _BLOCKS, 3], mean colours, 0..1. contrast: 0..1."""

    at_s: float
    blocks: npt.NDArray[np.float32]
    contrast: float

    def change(self, other: "_Look") -> float:
        """0..1: how different two frames are; 1 is a quarter of the whole range of colours."""
        return min(1.0, 4 * float(np.abs(self.blocks - other.blocks).mean()))


def _looks(reader: FrameReader, content: MediaFile, limits: MediaLimits) -> Iterator[_Look]:
    reformatter = VideoReformatter()
    first: int | None = None
    at_s = 0.0
    for stamp, frame in reader.read(content, rough=True):
        first = stamp if first is None else first
        # Some containers tell times in the order of decoding; time never runs backwards. These are
        # the seconds of a timeline to the last bit: a window may begin with them.
        unit = reader.unit
        at_s = max(at_s, (stamp - first) * unit.numerator / unit.denominator)
        if at_s > limits.max_duration_s:
            raise MediaError(
                "decode_too_large",
                f"more than {at_s:.1f} s of the {reader.found.label} would have to be decoded; the "
                f"limit is {limits.max_duration_s:g} s",
            )
        yield _look(at_s, frame, reformatter)


def _look(at_s: float, frame: VideoFrame, reformatter: VideoReformatter) -> _Look:
    scaled = reformatter.reformat(frame, _SIDE, _SIDE, "rgb24", interpolation="AREA", threads=1)
    small: npt.NDArray[np.uint8] = np.asarray(scaled.to_ndarray(), np.uint8)
    pixels = small.astype(np.float32) / 255
    within = _SIDE // _BLOCKS
    blocks = pixels.reshape(_BLOCKS, within, _BLOCKS, within, 3).mean((1, 3))
    return _Look(at_s, blocks, 2 * float(pixels.mean(2).std()))


def _changes(looks: Iterator[_Look], reader: FrameReader, threshold: float) -> Iterator[float]:
    """Seconds of the frames that begin something new."""
    around = flash = 2
    window: deque[_Look] = deque()
    changes: deque[float] = deque()  # of each frame of the window from the one before
    at = 0  # of the frame that is decided on next, within the window
    fade = _Fade()
    ended = False
    while True:
        while not ended and len(window) <= at + around:
            look = next(looks, None)
            if look is None:
                ended = True
                break
            if not window:
                around = _frames(_AROUND_S, reader.rate)
                flash = _frames(_FLASH_S, reader.rate)
            changes.append(window[-1].change(look) if window else 0.0)
            window.append(look)
        if at >= len(window):
            return
        jumped = _stands_out(changes, at, around, threshold)
        came_up = fade.see(window[at], jumped)
        if jumped and _lasts(window, changes[at], at, flash, threshold):
            yield window[at].at_s
            fade = _Fade()
        elif came_up is not None:
            yield came_up
        at += 1
        if at > around:
            window.popleft()
            changes.popleft()
            at -= 1


def _frames(seconds: float, rate: float) -> int:
    return max(2, min(_MOST_AROUND, round(seconds * rate)))


def _stands_out(changes: deque[float], at: int, around: int, threshold: float) -> bool:
    """Whether the change to a frame is large, and much larger than those around it."""
    change, last = changes[at], min(len(changes), at + around + 1)
    if at == 0 or change < threshold:
        return False
    near = [changes[one] for one in range(max(1, at - around), last) if one != at]
    return not near or change >= _STANDS_OUT * sum(near) / len(near)


def _lasts(window: deque[_Look], change: float, at: int, flash: int, threshold: float) -> bool:
    """Whether the frames before and behind a change are as different as the change says."""
    before = [window[one] for one in range(max(0, at - flash), at)]
    after = [window[one] for one in range(at, min(len(window), at + flash))]
    least = max(threshold, change / 2)
    return all(one.change(other) >= least for one in before for other in after)


class _Fade:
    """Follows the contrast of frames: down from something to nothing, and up to something."""

    def __init__(self) -> None:
        self.seen = False  # something, before it went down
        self.plain = False
        self.least = 1.0
        self.begins: float | None = None  # where it comes up

    def see(self, look: _Look, jumped: bool) -> float | None:
        """Seconds at which a new scene has begun, once one has. jumped: all changed at once."""
        if look.contrast <= _PLAIN:
            self.plain, self.seen = True, self.seen and not jumped
            if self.seen and look.contrast <= self.least:
                self.least, self.begins = look.contrast, None
            elif self.seen and self.begins is None:
                self.begins = look.at_s
            return None
        begins = look.at_s if self.begins is None else self.begins
        faded = self.plain and self.seen
        self.seen, self.plain, self.least, self.begins = True, False, 1.0, None
        return begins if faded else None
