"""Decodes the few frames of a video file that the model sees, with their times.

A first pass scans the packets, which tell the frames' times without decoding; the frames are
selected from these times. A second pass decodes and keeps only the selected frames, resized at
once; where the packets tell how, it skips what they do not need. If the decoder returns other
frames than the packets promised, everything is decoded, and the frames are selected again from
the times that this gave.
"""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from av.video.frame import VideoFrame

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import FileFormat, detect_format, find_truncation
from mediamill.model.media.frame_collector import FrameCollector, FrameSizeError, Video
from mediamill.model.media.frame_reader import FrameReader, too_many_frames_error
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.keyframe_decode import decode_by_keyframes
from mediamill.model.media.keyframes import KeyframeIndex
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile, Source
from mediamill.model.media.pixel_budget import PixelBudget, Size
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.media.timeline import FrameSelection, Timeline, select_frames
from mediamill.model.media.video_file import PacketScan

__all__ = ["Video", "decode_video"]

# A GIF is a picture by default, and a video if the caller asks for one.
_ALSO_VIDEO = {"GIF": FileFormat("video", "gif", "GIF animation")}
_MAX_ATTEMPTS = 3

_Window = tuple[float | None, float | None]  # start_s, end_s


def decode_video(
    source: Source,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    probe_cache: ProbeCache | None = None,
) -> Video:
    """Samples, decodes and resizes the frames of a video.

    source: a whole file; GIF animations count as videos here.
    rules: which frames. pixels: the size of each; rules.min_pixels and max_pixels win over it.
    start_s, end_s: a window, in seconds; only its frames are sampled.
    probe_cache: keeps the packet scans of files from call to call.
    Raises MediaError (media_empty, decode_unsupported, decode_too_large, decode_corrupt), and
    PromptError context_too_long if the frames would be more than limits.max_visual_tokens.
    """
    limits = limits or MediaLimits()
    media_file = MediaFile.of(source)
    file_format = video_format(media_file)
    budget = PixelBudget(rules, pixels.with_limits(rules.min_pixels, rules.max_pixels), limits)
    scan = (probe_cache or ProbeCache()).scan_packets(media_file, file_format, limits)
    size = scan.size
    for _ in range(_MAX_ATTEMPTS):
        try:
            return _decode(media_file, file_format, scan, size, budget, (start_s, end_s))
        except FrameSizeError as error:
            size = error.size
    raise MediaError("decode_corrupt", f"the frames of the {file_format.label} change their size")


def video_format(media_file: MediaFile, complete: bool = True) -> FileFormat:
    """Returns the format of a file that has to be a video.

    complete: also requires that the end of the file is there.
    Raises MediaError decode_unsupported or decode_corrupt.
    """
    file_format = detect_format(media_file)
    if complete and (truncation := find_truncation(media_file, file_format.name)):
        raise MediaError("decode_corrupt", f"the {file_format.label} is cut off: {truncation}")
    file_format = _ALSO_VIDEO.get(file_format.name, file_format)
    if file_format.kind != "video":
        raise MediaError(
            "decode_unsupported", f"the file is a {file_format.label}, a video was asked for"
        )
    return file_format


def video_timeline(
    media_file: MediaFile, file_format: FileFormat, scan: PacketScan, limits: MediaLimits
) -> Timeline:
    """Returns the timeline by the packets, or by decoding all frames if packets have no times."""
    if scan.timeline.timestamps:
        return scan.timeline
    decode = _SequentialDecode(file_format, scan.timeline, (), None, limits)
    decode.run(media_file)
    return decode.decoded_timeline()


def _decode(
    media_file: MediaFile,
    file_format: FileFormat,
    scan: PacketScan,
    size: Size,
    budget: PixelBudget,
    window: _Window,
) -> Video:
    """size: expected (height, width) of the frames. Raises FrameSizeError if it is wrong."""
    timeline, keyframes, limits = scan.timeline, scan.keyframes, budget.limits
    if timeline.timestamps and len(keyframes):
        selection = _select(timeline, size, budget, window)
        _check_decode_length(file_format, timeline, selection, limits, keyframes)
        collector = FrameCollector(file_format, selection, budget, size)
        if decode_by_keyframes(media_file, file_format, timeline, keyframes, collector, limits):
            return collector.video(timeline)
    expected: Sequence[int] = timeline.timestamps
    for _ in range(_MAX_ATTEMPTS):
        sequential_collector: FrameCollector | None = None
        if timeline.timestamps:
            selection = _select(timeline, size, budget, window)
            _check_decode_length(file_format, timeline, selection, limits)
            sequential_collector = FrameCollector(file_format, selection, budget, size)
        decode = _SequentialDecode(file_format, timeline, expected, sequential_collector, limits)
        decode.run(media_file)
        if sequential_collector is not None and decode.as_expected:
            return sequential_collector.video(timeline, decode.reader.skipped_packets)
        expected, timeline = decode.timestamps, decode.decoded_timeline()
    raise MediaError(
        "decode_corrupt", f"the {file_format.label} decodes to other frames at each attempt"
    )


def _select(timeline: Timeline, size: Size, budget: PixelBudget, window: _Window) -> FrameSelection:
    fit = partial(budget.fit_frames, size) if budget.adapts else None
    group = budget.pixels.temporal_patch_size
    return select_frames(timeline, budget.rules, *window, group, fit)


class _SequentialDecode:
    """One decode of all frames from the first on.

    timestamps: of all frames that were decoded.
    as_expected: whether they are the expected ones so far. Once they are not, no frame is stored
        any more, and all timestamps are gathered for the next attempt.
    """

    def __init__(
        self,
        file_format: FileFormat,
        timeline: Timeline,
        expected: Sequence[int],
        collector: FrameCollector | None,
        limits: MediaLimits,
    ) -> None:
        """expected: timestamps in the order of decoding. collector: None only gathers times."""
        self.timeline, self.expected, self.collector = timeline, expected, collector
        self.as_expected = collector is not None
        self.reader = FrameReader(file_format, limits)
        self.timestamps: list[int] = []

    def run(self, media_file: MediaFile) -> None:
        """Decodes until the selection is verified, or to the end."""
        seconds = self.timeline.seconds if self.timeline.timestamps else None
        frames = self.reader.read(media_file, seconds)
        with closing(frames):
            for timestamp, frame in frames:
                self._add(timestamp, frame)
                if self._is_verified():
                    return
        if self.as_expected and len(self.timestamps) != len(self.expected):
            self.as_expected = False

    def decoded_timeline(self) -> Timeline:
        """Returns the times of the decoded frames.

        Some containers have times in decoding order, and damaged ones in any order. Frames are
        shown in the order in which the decoder returns them, so the times are sorted.
        """
        timeline, rate = self.timeline, self.reader.rate
        return Timeline.build(sorted(self.timestamps), timeline.end, timeline.time_base, rate)

    def _is_verified(self) -> bool:
        """Whether the frames so far prove a selection whose window ends before the video does."""
        if self.collector is None or not self.as_expected:
            return False
        return len(self.timestamps) == self.collector.selection.frames_needed < len(self.expected)

    def _add(self, timestamp: int, frame: VideoFrame) -> None:
        index = len(self.timestamps)
        self.timestamps.append(timestamp)
        if index >= len(self.expected) or self.expected[index] != timestamp:
            self.as_expected = False
        if self.as_expected and self.collector is not None:
            self.collector.add(index, frame)


def _check_decode_length(
    file_format: FileFormat,
    timeline: Timeline,
    selection: FrameSelection,
    limits: MediaLimits,
    keyframes: KeyframeIndex | None = None,
) -> None:
    """Raises MediaError decode_too_large if too many frames or seconds have to be decoded.

    With `keyframes` they count from the last keyframe before the first selected frame.
    """
    first, from_s = 0, 0.0
    first_timestamp = timeline.timestamps[selection.indices[0]]
    keyframe = keyframes.last_before(first_timestamp) if keyframes is not None else None
    if keyframe is not None:
        first = bisect_left(timeline.timestamps, keyframe.timestamp)
        from_s = timeline.seconds(keyframe.timestamp)
    if selection.frames_needed - first > limits.max_frames_decoded:
        raise too_many_frames_error(file_format, selection.frames_needed - first, limits)
    if selection.end_s - from_s > limits.max_duration_s:
        raise MediaError(
            "decode_too_large",
            f"{selection.end_s - from_s:.1f} s of the {file_format.label} would have to be "
            f"decoded; the limit is {limits.max_duration_s:g} s",
        )
