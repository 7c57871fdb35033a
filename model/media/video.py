"""Turns the bytes of a video file into the few frames that the model looks at, with their times.

Two passes over the bytes: one over the packets, which tells the frames' times without decoding, and
one that decodes in order and keeps only the chosen frames, resized at once. It leaves out what they
do not need, where the packets tell how. If the decoder gives other frames than the packets
promised, everything is decoded, and the choice is made anew from what that gave.
"""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from av.video.frame import VideoFrame

from mediamill.model.errors import MediaError
from mediamill.model.media.budgets import Budget, Size
from mediamill.model.media.containers import Format, missing_end, recognise
from mediamill.model.media.content import MediaFile, Source
from mediamill.model.media.frame_collector import FrameCollector, OtherSizeError, Video
from mediamill.model.media.frame_reader import FrameReader, too_many_frames
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.keyframe_decode import leap
from mediamill.model.media.keyframes import Restarts
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.media.timeline import Choice, Timeline, choose
from mediamill.model.media.video_file import Survey

__all__ = ["Video", "decode_video"]

# GIF is a picture by default and a video if it is asked for as one.
_ALSO_VIDEO = {"GIF": Format("video", "gif", "GIF animation")}
_PASSES = 3


def decode_video(
    source: Source,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    known: ProbeCache | None = None,
) -> Video:
    """Samples, decodes and resizes frames.

    source: a whole file; GIF animations count as videos here. pixels: per frame (rules.min_pixels
    and rules.max_pixels, if set, win). start_s, end_s: only frames of this window are looked at.
    known: what is known of files that were looked at before, and where this one is kept.
    Raises MediaError (media_empty, decode_unsupported, decode_too_large, decode_corrupt), and
    PromptError context_too_long if the frames would be more than limits.max_visual_tokens.
    """
    limits = limits or MediaLimits()
    content = MediaFile.of(source)
    found = as_video(content)
    budget = Budget(rules, pixels.with_limits(rules.min_pixels, rules.max_pixels), limits)
    told = (known or ProbeCache()).survey(content, found, limits)
    size = told.size
    for _ in range(_PASSES):
        try:
            return _sampled(content, found, told, size, budget, (start_s, end_s))
        except OtherSizeError as error:
            size = error.size
    raise MediaError("decode_corrupt", f"the frames of the {found.label} change their size")


def as_video(content: MediaFile, whole: bool = True) -> Format:
    """The format of a file that is to be a video, and if it is whole, not cut off.

    Raises MediaError.
    """
    found = recognise(content)
    if whole and (cut := missing_end(content, found.name)):
        raise MediaError("decode_corrupt", f"the {found.label} is cut off: {cut}")
    found = _ALSO_VIDEO.get(found.name, found)
    if found.kind != "video":
        raise MediaError(
            "decode_unsupported", f"the file is a {found.label}, a video was asked for"
        )
    return found


def frame_times(content: MediaFile, found: Format, told: Survey, limits: MediaLimits) -> Timeline:
    """When each frame is shown, by the packets, or where they do not tell by decoding them all."""
    if told.timeline.stamps:
        return told.timeline
    decoding = _Decoding(found, told.timeline, (), None, limits)
    decoding.run(content)
    return decoding.told()


def _sampled(
    content: MediaFile,
    found: Format,
    told: Survey,
    size: Size,
    budget: Budget,
    window: tuple[float | None, float | None],
) -> Video:
    """size: of the frames (height, width). Raises OtherSizeError if they have another one."""
    timeline, restarts, limits = told.timeline, told.restarts, budget.limits
    if timeline.stamps and len(restarts):
        choice = _choice(timeline, size, budget, window)
        _check_length(found, timeline, choice, limits, restarts)
        kept = FrameCollector(found, choice, budget, size)
        if leap(content, found, timeline, restarts, kept, limits):
            return kept.video(timeline)
    planned: Sequence[int] = timeline.stamps
    for _ in range(_PASSES):
        chosen: FrameCollector | None = None
        if timeline.stamps:
            choice = _choice(timeline, size, budget, window)
            _check_length(found, timeline, choice, limits)
            chosen = FrameCollector(found, choice, budget, size)
        decoding = _Decoding(found, timeline, planned, chosen, limits)
        decoding.run(content)
        if chosen is not None and decoding.as_planned:
            return chosen.video(timeline, decoding.reader.damaged)
        planned, timeline = decoding.stamps, decoding.told()
    raise MediaError("decode_corrupt", f"the {found.label} decodes to other frames at each attempt")


def _choice(
    timeline: Timeline, size: Size, budget: Budget, window: tuple[float | None, float | None]
) -> Choice:
    fit = partial(budget.frames, size) if budget.lowers else None
    group = budget.pixels.temporal_patch_size
    return choose(timeline, budget.rules, *window, group, fit)


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
        kept: FrameCollector | None,
        limits: MediaLimits,
    ) -> None:
        self.timeline, self.planned, self.kept = timeline, planned, kept
        self.as_planned = kept is not None
        self.reader = FrameReader(found, limits)
        self.stamps: list[int] = []

    def run(self, content: MediaFile) -> None:
        """Decodes until the choice is certain, or to the end."""
        seconds = self.timeline.seconds if self.timeline.stamps else None
        frames = self.reader.read(content, seconds)
        with closing(frames):
            for stamp, frame in frames:
                self._see(stamp, frame)
                if self._certain():
                    return
        if self.as_planned and len(self.stamps) != len(self.planned):
            self.as_planned = False

    def told(self) -> Timeline:
        """The times of the frames that were seen.

        Some containers tell times in the order of decoding, damaged ones in any: frames are shown
        in the order in which they come out, and time never runs backwards.
        """
        rate = self.reader.rate
        return Timeline.build(sorted(self.stamps), self.timeline.end, self.timeline.unit, rate)

    def _certain(self) -> bool:
        """Whether the frames so far prove the choice, because its window ends before the video."""
        if self.kept is None or not self.as_planned:
            return False
        return len(self.stamps) == self.kept.choice.stop < len(self.planned)

    def _see(self, stamp: int, frame: VideoFrame) -> None:
        index = len(self.stamps)
        self.stamps.append(stamp)
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
        raise too_many_frames(found, choice.stop - first, limits)
    if choice.until_s - from_s > limits.max_duration_s:
        raise MediaError(
            "decode_too_large",
            f"{choice.until_s - from_s:.1f} s of the {found.label} would have to be decoded; "
            f"the limit is {limits.max_duration_s:g} s",
        )
