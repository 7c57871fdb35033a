"""Turns the header and the index of a video file into how long it lasts.

The packets are only read where neither tells it, or where what they tell may be another stream's.
Frames are decoded only where packets tell no times.
"""

import re
from fractions import Fraction

from av.container import InputContainer
from av.video.stream import VideoStream

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import Format
from mediamill.model.media.content import MediaFile, Source
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.media.video import as_video, frame_times
from mediamill.model.media.video_file import check_samples, opened

_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_MICROSECONDS = 1_000_000  # in which the library tells a container's duration
_FROM_HEADER = ("mov", "matroska", "avi")


class WholeFileNeededError(Exception):
    """Neither header nor index tell the duration, and the file is not whole."""


def duration_s(
    source: Source,
    limits: MediaLimits | None = None,
    whole: bool = True,
    known: ProbeCache | None = None,
) -> float:
    """Seconds from the first frame to the end of the last one, of the best video stream.

    What a header tells may be off by a frame; what packets tell is not.
    whole: False where parts of the file, other than its head and its index, may be holes; then no
        packet counts. known: as for `decode_video`.
    Raises MediaError as `decode_video`, and WholeFileNeededError for a file that is not whole.
    """
    limits = limits or MediaLimits()
    content = MediaFile.of(source)
    found = as_video(content, whole)
    if found.name in _FROM_HEADER:
        try:
            told = _told(content, found, limits, whole)
        except MediaError as error:
            # What is damaged, or no video, may be so for a hole.
            if whole or error.code == "decode_too_large":
                raise
            raise WholeFileNeededError(str(error)) from error
        if told is not None and told > 0:
            return told
    if not whole:
        raise WholeFileNeededError(f"the {found.label} does not tell its duration in its header")
    survey = (known or ProbeCache()).survey(content, found, limits)
    return frame_times(content, found, survey, limits).duration_s


def _told(content: MediaFile, found: Format, limits: MediaLimits, whole: bool) -> float | None:
    check_samples(content, found, limits)
    with opened(content, found, limits) as (container, stream):
        if found.name == "matroska":
            return _matroska(container, stream)
        # Where frames are counted in fragments the header counts none, and a fragment may be a
        # hole; an AVI file that was never closed counts none either.
        if stream.duration is None or not (stream.frames or (whole and found.name == "mov")):
            return None
        if found.name == "avi" and whole and len(stream.index_entries) != stream.frames:
            return None
        return float(stream.duration * (stream.time_base or Fraction(0)))


def _matroska(container: InputContainer, stream: VideoStream) -> float | None:
    """By the tag that muxers write for each stream, or the segment's if there is one stream only.

    Both count from the segment's beginning to the end of the last frame. When the first frame is
    shown its packet tells.
    """
    if container.duration is None or stream.start_time is None:
        return None
    end = container.duration / _MICROSECONDS
    start = float(stream.start_time * (stream.time_base or Fraction(0)))
    if len(container.streams) == 1:
        return end - start
    clock = _CLOCK.match(stream.metadata.get("DURATION", ""))
    if clock is None:
        return None
    hours, minutes, seconds = (float(part) for part in clock.groups())
    own = 3600 * hours + 60 * minutes + seconds
    # A tag of a longer file, from which this one was cut, is no use.
    return own - start if own <= end + 0.001 else None
