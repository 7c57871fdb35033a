"""Measures how long a video lasts, from its header and index where they are reliable.

The packets are read only if the header has no duration, or one that may be another stream's;
frames are decoded only if the packets have no times.
"""

import re
from fractions import Fraction
from itertools import pairwise

from av.container import InputContainer
from av.video.stream import VideoStream

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import FileFormat
from mediamill.model.media.declared_ends import goes_on
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile, Source
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.media.video import video_format, video_timeline
from mediamill.model.media.video_file import check_sample_count, open_video

_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_AV_TIME_BASE = 1_000_000  # FFmpeg counts a container's duration in microseconds
_LONG_INTERVAL_S = 0.5
_FORMATS_WITH_DURATION = ("mov", "matroska", "avi")


class WholeFileNeededError(Exception):
    """The header and the index have no duration, and the file is not complete."""


def duration_s(
    source: Source,
    limits: MediaLimits | None = None,
    complete: bool = True,
    probe_cache: ProbeCache | None = None,
) -> float:
    """Returns the seconds from the first frame to the end of the last one, of the best stream.

    A header's duration may be off by a frame; that of the packets is exact.

    complete: False if parts of the file may be holes, other than its beginning and its index;
        packets are not read then.
    probe_cache: as for `decode_video`.
    Raises MediaError as `decode_video`, and WholeFileNeededError for a file that is not complete.
    """
    limits = limits or MediaLimits()
    media_file = MediaFile.of(source)
    file_format = video_format(media_file, complete)
    if file_format.name in _FORMATS_WITH_DURATION:
        try:
            duration = _header_duration(media_file, file_format, limits, complete)
        except MediaError as error:
            # A hole may look like damage, or hide the video stream.
            if complete or error.code == "decode_too_large":
                raise
            raise WholeFileNeededError(str(error)) from error
        if duration is not None and duration > 0:
            return duration
    if not complete:
        raise WholeFileNeededError(f"the {file_format.label} has no duration in its header")
    scan = (probe_cache or ProbeCache()).scan_packets(media_file, file_format, limits)
    return video_timeline(media_file, file_format, scan, limits).duration_s


def _header_duration(
    media_file: MediaFile, file_format: FileFormat, limits: MediaLimits, complete: bool
) -> float | None:
    """Returns the duration in seconds by the header or the index; None if they are not reliable."""
    check_sample_count(media_file, file_format, limits)
    with media_file.open() as handle:
        if goes_on(handle, file_format.name, media_file.size):
            return None
    with open_video(media_file, file_format, limits) as (container, stream):
        if file_format.name == "matroska":
            return _matroska_duration(container, stream)
        # The header of a fragmented file counts no frames, and a fragment may be a hole; an AVI
        # file that was never closed counts none either.
        if stream.duration is None or not (
            stream.frames or (complete and file_format.name == "mov")
        ):
            return None
        if file_format.name == "mov" and _may_end_later(stream):
            return None
        if file_format.name == "avi" and complete and len(stream.index_entries) != stream.frames:
            return None
        return float(stream.duration * (stream.time_base or Fraction(0)))


def _may_end_later(stream: VideoStream) -> bool:
    """Whether the last frame may be shown long after the duration by the header.

    The header adds the intervals in decoding order. If one is long, the order of showing frames
    moves it to another place.
    """
    if not stream.codec_context.has_b_frames:
        return False
    limit = float(_LONG_INTERVAL_S / (stream.time_base or Fraction(1)))
    times = (entry.timestamp for entry in stream.index_entries)
    return any(after - before > limit for before, after in pairwise(times))


def _matroska_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Returns the stream's DURATION tag, or the segment's duration if it has one stream only.

    Both count from the beginning of the segment to the end of the last frame, so the first
    frame's time is subtracted.
    """
    if container.duration is None or stream.start_time is None:
        return None
    end = container.duration / _AV_TIME_BASE
    start = float(stream.start_time * (stream.time_base or Fraction(0)))
    if len(container.streams) == 1:
        return end - start
    clock = _CLOCK.match(stream.metadata.get("DURATION", ""))
    if clock is None:
        return None
    hours, minutes, seconds = (float(part) for part in clock.groups())
    stream_end = 3600 * hours + 60 * minutes + seconds
    # A file that was cut from a longer one may keep the longer one's tag.
    return stream_end - start if stream_end <= end + 0.001 else None
