"""Decodes the few frames of a video file that the model sees, with their times.

A first pass scans the packets, and the frames are selected from the times that these have. A second
pass decodes and keeps only the selected frames, resized at once; where the packets tell how, it
skips what they do not need. If the decoder returns other frames than the packets promised,
everything is decoded, and the frames are selected again from the times that this gave.
"""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from mediamill.model.errors import MediaError
from mediamill.model.media.animations import animation_format
from mediamill.model.media.containers import FileFormat, detect_format, find_truncation
from mediamill.model.media.display import Display
from mediamill.model.media.frame_collector import FrameCollector, FrameSizeError, Video
from mediamill.model.media.frame_reader import (
    ConcealedDamageError,
    FrameReader,
    too_many_frames_error,
)
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.keyframe_decode import decode_by_keyframes
from mediamill.model.media.keyframes import KeyframeIndex
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile, Source
from mediamill.model.media.pixel_budget import PixelBudget, Size
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.media.resize import Resample
from mediamill.model.media.timeline import (
    FrameSelection,
    Timeline,
    exact_selection,
    select_frames,
)
from mediamill.model.media.video_file import PacketScan

__all__ = ["Video", "decode_frames", "decode_video"]

_MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class _Window:
    """The part of a video that is sampled, in seconds."""

    start_s: float | None
    end_s: float | None


_Chosen = _Window | tuple[int, ...]  # or the indices of the frames


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

    source: a whole file; animated pictures count as videos here.
    rules: which frames. pixels: the size of each; rules.min_pixels and max_pixels win over it.
    start_s, end_s: a window, in seconds; only its frames are sampled.
    probe_cache: keeps the packet scans of files from call to call.
    Raises MediaError (media_empty, decode_unsupported, decode_too_large, decode_corrupt), and
    PromptError context_too_long if the frames would be more than limits.max_visual_tokens.
    """
    limits = limits or MediaLimits()
    budget = PixelBudget(rules, pixels.with_limits(rules.min_pixels, rules.max_pixels), limits)
    window = _Window(start_s, end_s)
    return _decode_file(MediaFile.of(source), budget, probe_cache or ProbeCache(), window)


def decode_frames(
    source: Source,
    indices: Sequence[int],
    size: Size,
    limits: MediaLimits | None = None,
    resample: Resample = "bicubic",
) -> Video:
    """Decodes the frames with these ascending indices, and resizes them to `size`.

    size: (height, width). Raises MediaError as `decode_video`.
    """
    pixels = ImageRules(resample=resample)
    budget = PixelBudget(VideoRules(), pixels, limits or MediaLimits(), fixed_size=size)
    return _decode_file(MediaFile.of(source), budget, ProbeCache(), tuple(indices))


def video_format(media_file: MediaFile, complete: bool = True) -> FileFormat:
    """Returns the format of a file. Raises MediaError decode_unsupported if it is no video.

    complete: also raises decode_corrupt if the end of the file is missing.
    """
    detected = detect_format(media_file)
    file_format = animation_format(media_file, detected) or detected
    if file_format.kind != "video":
        raise MediaError(
            "decode_unsupported", f"the file is a {file_format.label}, a video was asked for"
        )
    if complete and (truncation := find_truncation(media_file, detected.name)):
        raise MediaError("decode_corrupt", f"the {file_format.label} is cut off: {truncation}")
    return file_format


def video_timeline(
    media_file: MediaFile, file_format: FileFormat, scan: PacketScan, limits: MediaLimits
) -> Timeline:
    """Returns the timeline by the packets, or by decoding all frames if packets have no times."""
    if scan.timeline.timestamps:
        return scan.timeline
    reader = FrameReader(file_format, limits)
    timestamps, _ = _decode_all(media_file, reader, scan.timeline, (), None)
    return _decoded_timeline(scan.timeline, timestamps, reader)


def _decode_file(
    media_file: MediaFile, budget: PixelBudget, probe_cache: ProbeCache, chosen: _Chosen
) -> Video:
    file_format = video_format(media_file)
    scan = probe_cache.scan_packets(media_file, file_format, budget.limits)
    size = scan.display.shown
    for _ in range(_MAX_ATTEMPTS):
        try:
            return _decode(media_file, file_format, scan, size, budget, chosen)
        except FrameSizeError as error:
            size = error.size
    raise MediaError("decode_corrupt", f"the frames of the {file_format.label} change their size")


def _decode(
    media_file: MediaFile,
    file_format: FileFormat,
    scan: PacketScan,
    size: Size,
    budget: PixelBudget,
    chosen: _Chosen,
) -> Video:
    """size: expected (height, width) of the frames. Raises FrameSizeError if it is wrong."""
    timeline = scan.timeline
    select = partial(_collector, file_format, size, budget, chosen, scan.display)
    if timeline.timestamps and len(scan.keyframes):
        collector = select(timeline, scan.keyframes)
        if decode_by_keyframes(media_file, scan, collector):
            return collector.video(timeline, scan.notes)
    expected: Sequence[int] = timeline.timestamps
    notes, stop_at_damage = scan.notes, True
    for _ in range(_MAX_ATTEMPTS + 1):
        all_collector: FrameCollector | None = None
        if timeline.timestamps:
            all_collector = select(timeline)
        reader = FrameReader(file_format, budget.limits, stop_at_damage)
        try:
            decoded = _decode_all(media_file, reader, timeline, expected, all_collector)
        except ConcealedDamageError as damage:
            # Players show it, so what they would show is shown, and told. Before the first frame
            # there is nothing to conceal: the file begins between keyframes.
            stop_at_damage = False
            notes = (
                (*notes, f"damage {damage}: concealed by the decoder") if reader.count else notes
            )
            continue
        timestamps, verified = decoded
        if all_collector is not None and verified:
            return all_collector.video(timeline, notes, reader.skipped_packets)
        expected, timeline = timestamps, _decoded_timeline(timeline, timestamps, reader)
    raise MediaError(
        "decode_corrupt", f"the {file_format.label} decodes to other frames at each attempt"
    )


def _collector(
    file_format: FileFormat,
    size: Size,
    budget: PixelBudget,
    chosen: _Chosen,
    display: Display,
    timeline: Timeline,
    keyframes: KeyframeIndex | None = None,
) -> FrameCollector:
    """Selects the frames and returns a collector for them. Raises as `_check_decode_length`."""
    fit = partial(budget.fit_frames, size) if budget.adapts else None
    group = budget.pixels.temporal_patch_size
    if isinstance(chosen, _Window):
        window = chosen.start_s, chosen.end_s
        selection = select_frames(timeline, budget.rules, *window, group, fit)
    else:
        selection = exact_selection(timeline, chosen)
    _check_decode_length(file_format, timeline, selection, budget.limits, keyframes)
    return FrameCollector(file_format, selection, budget, size, display)


def _decode_all(
    media_file: MediaFile,
    reader: FrameReader,
    timeline: Timeline,
    expected: Sequence[int],
    collector: FrameCollector | None,
) -> tuple[list[int], bool]:
    """Decodes from the first frame on, until the selection is verified or to the end.

    Returns the timestamps of the decoded frames, and whether they verify what `collector` holds.
    Once they are not as expected, no frame is stored any more, and all timestamps are gathered
    for the next attempt.

    expected: timestamps in the order of decoding. collector: None only gathers timestamps.
    """
    timestamps: list[int] = []
    as_expected = collector is not None
    seconds = timeline.seconds if timeline.timestamps else None
    with closing(reader.read(media_file, seconds)) as frames:
        for index, (timestamp, frame) in enumerate(frames):
            timestamps.append(timestamp)
            as_expected = as_expected and index < len(expected) and expected[index] == timestamp
            if collector is None or not as_expected:
                continue
            collector.add(index, frame)
            # These frames prove a selection whose window ends before the video does.
            if len(timestamps) == collector.selection.frames_needed < len(expected):
                return timestamps, True
    return timestamps, as_expected and len(timestamps) == len(expected)


def _decoded_timeline(timeline: Timeline, timestamps: list[int], reader: FrameReader) -> Timeline:
    """Returns the times of the decoded frames.

    Some containers have times in decoding order, and damaged ones in any order. Frames are shown in
    the order in which the decoder returns them, so the times are sorted.
    """
    return Timeline.build(sorted(timestamps), timeline.end, timeline.time_base, reader.rate)


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
