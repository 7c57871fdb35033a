"""Turns the bytes of a video file into the few frames that the model looks at, with their times.

Two passes over the bytes: one over the packets, which tells the frames' times without decoding, and
one that decodes in order and keeps only the chosen frames, resized at once. It leaves out what they
do not need, where the packets tell how. If the decoder gives other frames than the packets
promised, everything is decoded, and the choice is made anew from what that gave.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from model.errors import MediaError
from model.media.containers import Format, missing_end, recognise
from model.media.content import Content, Source
from model.media.frame_sampling import VideoRules
from model.media.image_rules import ImageRules
from model.media.kept_frames import KeptFrames, Video, frame_size
from model.media.limits import MediaLimits
from model.media.seeking import Restarts
from model.media.timeline import Choice, Timeline, choose
from model.media.video_file import opened, packet_times

__all__ = ["Video", "decode_video", "frame_size"]

# GIF is a picture by default and a video if it is asked for as one.
_ALSO_VIDEO = {"GIF": Format("video", "gif", "GIF animation")}
_PASSES = 3
_PROOF = 8  # frames at the beginning that have to be as the packets promise, before any is left out


def decode_video(
    source: Source,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Video:
    """Samples, decodes and resizes frames.

    source: a whole file; GIF animations count as videos here. pixels: per frame (rules.min_pixels
    and rules.max_pixels, if set, win). start_s, end_s: only frames of this window are looked at.
    Raises MediaError (media_empty, decode_unsupported, decode_too_large, decode_corrupt), and
    PromptError context_too_long if the frames would be more than limits.max_visual_tokens.
    """
    limits = limits or MediaLimits()
    content = Content.of(source)
    found = recognise(content)
    if cut := missing_end(content, found.name):
        raise MediaError("decode_corrupt", f"the {found.label} is cut off: {cut}")
    found = _ALSO_VIDEO.get(found.name, found)
    if found.kind != "video":
        raise MediaError(
            "decode_unsupported", f"the file is a {found.label}, a video was asked for"
        )
    pixels = pixels.with_limits(rules.min_pixels, rules.max_pixels)
    timeline, restarts = packet_times(content, found, limits)
    if timeline.stamps and restarts.places:
        choice = choose(timeline, rules, start_s, end_s, pixels.temporal_patch_size)
        _check_length(found, timeline, choice, limits, restarts)
        kept = KeptFrames(found, choice, rules, pixels, limits)
        if _leap(content, found, timeline, restarts, kept, limits):
            return kept.video(timeline)
    planned = timeline.stamps
    for _ in range(_PASSES):
        chosen: KeptFrames | None = None
        if timeline.stamps:
            choice = choose(timeline, rules, start_s, end_s, pixels.temporal_patch_size)
            _check_length(found, timeline, choice, limits)
            chosen = KeptFrames(found, choice, rules, pixels, limits)
        decoding = _Decoding(found, timeline, planned, chosen, limits)
        decoding.run(content)
        if chosen is not None and decoding.as_planned:
            return chosen.video(timeline, decoding.damaged)
        # Some containers tell times in the order of decoding, damaged ones in any: frames are shown
        # in the order in which they come out, and time never runs backwards.
        planned = tuple(decoding.stamps)
        timeline = Timeline.build(sorted(planned), timeline.end, timeline.unit, decoding.rate)
    raise MediaError("decode_corrupt", f"the {found.label} decodes to other frames at each attempt")


def _leap(
    content: Content,
    found: Format,
    timeline: Timeline,
    restarts: Restarts,
    kept: KeptFrames,
    limits: MediaLimits,
) -> bool:
    """Decodes from one place to begin anew to the next, and only what the chosen frames need.

    The packets between are read and dropped: unlike a demuxer's own seeking, that gives the same
    packets in every container. False: something is not as the packets promised, or is damaged;
    whether that matters, a decoding of everything has to tell.
    """
    stamps, proof = timeline.stamps, min(_PROOF, len(timeline.stamps))
    expected, resume, floor = 0, 0, None  # floor: stamp of the place that is decoded from
    with opened(content, found, limits) as (container, stream):
        for number, packet in enumerate(container.demux(stream)):
            if number < resume:
                continue
            if floor is not None and number == resume:
                stream.codec_context.flush_buffers()
            try:
                frames = packet.decode()
            except av.FFmpegError:
                return False
            for frame in frames:
                if frame.pts is None:
                    return False
                if floor is not None:
                    if frame.pts < floor:  # shown before, and decoded without what it refers to
                        continue
                    if not frame.key_frame:
                        return False
                    floor = None
                if expected == len(stamps) or frame.pts != stamps[expected] or frame.is_corrupt:
                    return False
                kept.see(expected, frame)
                expected += 1
            if expected < proof or floor is not None:
                continue
            if kept.complete:
                return True
            place = restarts.before(stamps[kept.next_index])
            if place is not None and place.packet > number + 1:
                resume, floor = place
                expected = bisect_left(stamps, floor)
    return kept.complete


class _Decoding:
    """One pass through the frames of a video, in the order of display.

    stamps: time stamps of all frames seen. as_planned: they are those that were planned so far;
    once they are not, nothing more is kept and all stamps are gathered for the next pass.
    """

    def __init__(
        self,
        found: Format,
        timeline: Timeline,
        planned: Sequence[int],
        kept: KeptFrames | None,
        limits: MediaLimits,
    ) -> None:
        self.found, self.timeline, self.planned = found, timeline, planned
        self.kept, self.limits = kept, limits
        self.as_planned = kept is not None
        self.stamps: list[int] = []
        self.rate = 1.0
        self.damaged = 0

    def run(self, content: Content) -> None:
        """Decodes until the choice is certain, or to the end."""
        with opened(content, self.found, self.limits) as (container, stream):
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
        if self.as_planned and len(self.stamps) != len(self.planned):
            self.as_planned = False

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
        if self.kept is None or not self.as_planned:
            return False
        return len(self.stamps) == self.kept.choice.stop < len(self.planned)

    def _see(self, stamp: int, frame: VideoFrame) -> None:
        index = len(self.stamps)
        self.stamps.append(stamp)
        if index >= self.limits.max_frames_decoded:
            raise _too_many(self.found, index + 1, self.limits)
        if index >= len(self.planned) or self.planned[index] != stamp:
            self.as_planned = False
        if self.as_planned and self.kept is not None:
            self.kept.see(index, frame)


def _check_length(
    found: Format,
    timeline: Timeline,
    choice: Choice,
    limits: MediaLimits,
    restarts: Restarts | None = None,
) -> None:
    """Counts from the last place before the first chosen frame where decoding may begin anew."""
    first, from_s = 0, 0.0
    place = restarts and restarts.before(timeline.stamps[choice.indices[0]])
    if place:
        first, from_s = bisect_left(timeline.stamps, place.stamp), timeline.seconds(place.stamp)
    if choice.stop - first > limits.max_frames_decoded:
        raise _too_many(found, choice.stop - first, limits)
    if choice.until_s - from_s > limits.max_duration_s:
        raise MediaError(
            "decode_too_large",
            f"{choice.until_s - from_s:.1f} s of the {found.label} would have to be decoded; "
            f"the limit is {limits.max_duration_s:g} s",
        )


def _too_many(found: Format, count: int, limits: MediaLimits) -> MediaError:
    return MediaError(
        "decode_too_large",
        f"{count} frames of the {found.label} would have to be decoded; "
        f"the limit is {limits.max_frames_decoded}",
    )
