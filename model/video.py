"""Turns the bytes of a video file into the few frames that the model looks at, with their times.

Two passes over the bytes: one over the packets, which tells the frames' times without decoding, and
one that decodes in order and keeps only the chosen frames, resized at once. If the decoder gives
other frames than the packets promised, the choice is made anew from what it gave.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from model.containers import Format, missing_end, recognise
from model.errors import MediaError, PromptError
from model.frame_sampling import VideoRules, max_pixels_for
from model.image_rules import ImageRules
from model.limits import MediaLimits
from model.patches import resize
from model.timeline import Choice, Timeline, choose
from model.video_file import check_frame, opened, packet_times

# GIF is a picture by default and a video if it is asked for as one.
_ALSO_VIDEO = {"GIF": Format("video", "gif", "GIF animation")}
_PASSES = 3


@dataclass(frozen=True)
class Video:
    """The frames that are looked at.

    frames: uint8 [n, 3, H, W], upright RGB, resized.
    times_s, indices: of each frame: seconds from the video's first frame, and its ordinal in the
        whole video. fps, total_frames: of the window that was asked for, or of the whole video.
    source_height, source_width: pixels of the upright frames before the resize.
    notes: what was clamped or changed, in words.
    """

    frames: torch.Tensor
    times_s: tuple[float, ...]
    indices: tuple[int, ...]
    fps: float
    total_frames: int
    source_height: int
    source_width: int
    notes: tuple[str, ...]


def decode_video(
    data: bytes,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Video:
    """Samples, decodes and resizes frames.

    data: a whole file; GIF animations count as videos here. pixels: per frame (rules.min_pixels and
    rules.max_pixels, if set, win). start_s, end_s: only frames of this window are looked at.
    Raises MediaError (media_empty, decode_unsupported, decode_too_large, decode_corrupt), and
    PromptError context_too_long if the frames would be more than limits.max_visual_tokens.
    """
    limits = limits or MediaLimits()
    found = recognise(data)
    if cut := missing_end(data, found.name):
        raise MediaError("decode_corrupt", f"the {found.label} is cut off: {cut}")
    found = _ALSO_VIDEO.get(found.name, found)
    if found.kind != "video":
        raise MediaError(
            "decode_unsupported", f"the file is a {found.label}, a video was asked for"
        )
    pixels = pixels.with_limits(rules.min_pixels, rules.max_pixels)
    timeline = packet_times(data, found, limits)
    for _ in range(_PASSES):
        choice = _choice(timeline, rules, start_s, end_s, pixels)
        if choice is not None:
            _check_length(found, choice, limits)
        decoding = _Decoding(found, timeline, choice, rules, pixels, limits)
        decoding.run(data)
        if choice is not None and decoding.as_planned:
            return decoding.video(choice)
        timeline = Timeline.build(decoding.stamps, timeline.end, timeline.unit, decoding.rate)
    raise MediaError("decode_corrupt", f"the {found.label} decodes to other frames at each attempt")


class _Decoding:
    """One pass through the frames of a video, in the order of display.

    stamps: time stamps of all frames seen. as_planned: they are those of the timeline so far; once
    they are not, nothing more is kept and all stamps are gathered for the next pass.
    """

    def __init__(
        self,
        found: Format,
        timeline: Timeline,
        choice: Choice | None,
        rules: VideoRules,
        pixels: ImageRules,
        limits: MediaLimits,
    ) -> None:
        self.found, self.timeline, self.choice = found, timeline, choice
        self.rules, self.pixels, self.limits = rules, pixels, limits
        self.as_planned = choice is not None
        self.stamps: list[int] = []
        self.rate = 1.0
        self.frames: torch.Tensor | None = None
        self.kept = 0
        self.source = (0, 0)
        self.damaged = 0
        self.notes: list[str] = []

    def run(self, data: bytes) -> None:
        """Decodes until the choice is certain, or to the end."""
        with opened(data, self.found, self.limits) as (container, stream):
            self.rate = float(stream.average_rate or stream.base_rate or 25)
            step = max(1, round(1 / (self.rate * float(stream.time_base or 1))))
            for frame in self._frames(container, stream):
                if frame.pts is not None:
                    stamp = frame.pts
                else:
                    stamp = self.stamps[-1] + step if self.stamps else 0
                self._see(stamp, frame)
                if self._certain():
                    return
        if not self.stamps:
            raise MediaError("decode_corrupt", f"no frame of the {self.found.label} can be decoded")
        if self.as_planned and len(self.stamps) != len(self.timeline.stamps):
            self.as_planned = False

    def video(self, choice: Choice) -> Video:
        """The kept frames of a pass that went as planned."""
        assert self.frames is not None
        notes = list(choice.notes) + self.notes
        count, _, height, width = self.frames.shape
        most = max_pixels_for(count, self.pixels, self.rules)
        if note := self.pixels.resize_note(self.source, (height, width), most):
            notes.append(note)
        if self.damaged:
            notes.append(f"{self.damaged} packets before the first whole frame left out")
        return Video(
            frames=self.frames,
            times_s=choice.times_s,
            indices=choice.indices,
            fps=choice.fps,
            total_frames=len(self.timeline.stamps),
            source_height=self.source[0],
            source_width=self.source[1],
            notes=tuple(notes),
        )

    def _frames(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError as error:
                # A recording may begin between key frames: nothing can be shown before the first.
                if self.stamps:
                    at = self.timeline.seconds(self.stamps[-1]) if self.timeline.stamps else 0.0
                    raise MediaError(
                        "decode_corrupt",
                        f"the {self.found.label} is damaged after frame {len(self.stamps) - 1} "
                        f"({at:.3f} s): {error.strerror}",
                    ) from error
                self.damaged += 1

    def _certain(self) -> bool:
        """Whether the frames so far prove the choice, because its window ends before the video."""
        if self.choice is None or not self.as_planned:
            return False
        return len(self.stamps) == self.choice.stop < len(self.timeline.stamps)

    def _see(self, stamp: int, frame: VideoFrame) -> None:
        index = len(self.stamps)
        self.stamps.append(stamp)
        if index >= self.limits.max_frames_decoded:
            raise _too_many(self.found, index + 1, self.limits)
        planned = self.timeline.stamps
        if index >= len(planned) or planned[index] != stamp:
            self.as_planned = False
        if self.as_planned and self.choice is not None:
            while self.kept < len(self.choice.indices) and self.choice.indices[self.kept] == index:
                self._keep(index, frame, len(self.choice.indices))

    def _keep(self, index: int, frame: VideoFrame, count: int) -> None:
        if frame.is_corrupt:
            raise MediaError(
                "decode_corrupt", f"frame {index} of the {self.found.label} is damaged"
            )
        check_frame(self.found, frame.width, frame.height, self.limits)
        rgb = frame.to_ndarray(format="rgb24")
        turns = frame.rotation // 90 % 4
        upright = np.ascontiguousarray(np.rot90(rgb, turns).transpose(2, 0, 1))
        if self.frames is None:
            self.source = (upright.shape[1], upright.shape[2])
            size = frame_size(self.source, count, self.rules, self.pixels, self.limits)
            self.frames = torch.empty((count, 3, *size), dtype=torch.uint8)
            if turns:
                self.notes.append(f"rotated by {90 * turns} degrees (file metadata)")
        elif self.source != upright.shape[1:] and len(self.notes) < 2:
            self.notes.append(
                f"frame size changes at frame {index}; all resized to the first one's"
            )
        height, width = self.frames.shape[2:]
        self.frames[self.kept] = resize(
            torch.from_numpy(upright), height, width, self.pixels.resample
        )
        self.kept += 1


def frame_size(
    source: tuple[int, int],
    count: int,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits,
) -> tuple[int, int]:
    """(height, width) after the resize of each of `count` frames of the size `source`.

    Raises MediaError decode_unsupported for sizes that cannot be used, and PromptError
    context_too_long if the frames are more visual tokens than limits.max_visual_tokens.
    """
    try:
        height, width = pixels.size_of(*source, max_pixels_for(count, pixels, rules))
    except ValueError as error:
        raise MediaError("decode_unsupported", str(error)) from error
    tokens = pixels.tokens_of((height, width), count)
    if limits.max_visual_tokens is not None and tokens > limits.max_visual_tokens:
        raise PromptError(
            "context_too_long",
            f"{count} frames of {width} x {height} pixels are {tokens} visual tokens; the model "
            f"takes {limits.max_visual_tokens}: lower the video's max_pixels, max_frames or fps",
        )
    return height, width


def _choice(
    timeline: Timeline,
    rules: VideoRules,
    start_s: float | None,
    end_s: float | None,
    pixels: ImageRules,
) -> Choice | None:
    if not timeline.stamps:
        return None
    return choose(timeline, rules, start_s, end_s, pixels.temporal_patch_size)


def _check_length(found: Format, choice: Choice, limits: MediaLimits) -> None:
    if choice.stop > limits.max_frames_decoded:
        raise _too_many(found, choice.stop, limits)
    if choice.until_s > limits.max_duration_s:
        raise MediaError(
            "decode_too_large",
            f"{choice.until_s:.1f} s of the {found.label} would have to be decoded; "
            f"the limit is {limits.max_duration_s:g} s",
        )


def _too_many(found: Format, count: int, limits: MediaLimits) -> MediaError:
    return MediaError(
        "decode_too_large",
        f"{count} frames of the {found.label} would have to be decoded; "
        f"the limit is {limits.max_frames_decoded}",
    )
