"""Turns the bytes of a video file into an open stream, and into the times that its packets tell.

The only file that knows how the video library is opened. It never opens anything but the bytes.
"""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import Format
from mediamill.model.media.content import MediaFile, Source
from mediamill.model.media.keyframes import RestartFinder, Restarts
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.mp4_boxes import told_samples
from mediamill.model.media.timeline import Timeline

# A demuxer cannot follow references to other files if no protocol is allowed. The others name what
# is the library's default: it must not depend on a version. No demuxer minds what it does not know.
_CAUTION = {
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "use_absolute_path": "0",
    "max_streams": "1000",
    "probesize": "5000000",
}
# The library reads beyond its list of options per stream where streams are only found on the way.
_STREAMS_COME_LATER = ("mpeg", "mpegts", "flv")


@dataclass(frozen=True)
class Survey:
    """What the packets of a stream tell.

    timeline: the frames' times; no stamps if they are not told. restarts: where decoding may begin
    anew. size: (height, width) of the frames in pixels, by the header, not turned.
    """

    timeline: Timeline
    restarts: Restarts
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, about."""
        return 8 * (len(self.timeline.stamps) + len(self.restarts.numbers))


def survey(source: Source, found: Format, limits: MediaLimits) -> Survey:
    """Reads all packets; decodes none.

    Raises MediaError as `opened`, and media_empty for a stream without packets.
    """
    check_samples(source, found, limits)
    stamps = array("q")
    last_end: int | None = None
    timed = True
    with opened(source, found, limits) as (container, stream):
        unit = stream.time_base or Fraction(1, 1000)
        rate = float(stream.average_rate or stream.base_rate or 25)
        context = stream.codec_context
        size = context.height, context.width
        finder = RestartFinder(found.name, context.name, context.extradata or b"")
        for number, packet in enumerate(container.demux(stream)):
            if packet.pts is None and packet.dts is None and not packet.size:
                continue
            if number >= limits.max_packets:
                raise _too_many(found, number + 1, limits)
            if packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change"):
                finder.give_up()
            key_frame = bytes(packet) if packet.is_keyframe and finder.possible else None
            finder.see(number, packet.pts, key_frame, shown=not packet.is_discard)
            if packet.is_discard:
                continue
            if packet.pts is None:
                timed = False
                continue
            stamps.append(packet.pts)
            if packet.duration:
                end = packet.pts + packet.duration
                last_end = end if last_end is None else max(last_end, end)
    if timed and not stamps:
        raise MediaError("media_empty", f"the {found.label} holds no frames")
    if not timed:
        return Survey(Timeline(array("q"), last_end or 0, unit), Restarts(), size)
    timeline = Timeline.build(_sorted(stamps), last_end, unit, rate)
    return Survey(timeline, finder.found(), size)


def check_samples(source: Source, found: Format, limits: MediaLimits) -> None:
    """Before a file is opened for which the library would take memory for each sample.

    Raises MediaError decode_too_large.
    """
    if found.name == "mov" and (told := told_samples(MediaFile.of(source))) > limits.max_packets:
        raise _too_many(found, told, limits)


@contextmanager
def opened(
    source: Source, found: Format, limits: MediaLimits
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream; the library's errors become MediaErrors.

    Raises MediaError decode_unsupported, decode_too_large or decode_corrupt, also for what the
    library raises while the stream is used.
    """
    size = 0
    ceiling = {"max_pixels": str(limits.max_video_pixels)}
    try:
        with (
            MediaFile.of(source).open() as handle,
            av.open(
                handle,
                "r",
                format=found.name,
                container_options=_CAUTION,
                options={} if found.name in _STREAMS_COME_LATER else ceiling,
                metadata_errors="replace",
            ) as container,
        ):
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                raise MediaError("decode_unsupported", f"the {found.label} holds no video stream")
            assert isinstance(stream, VideoStream)
            context = stream.codec_context
            if context is None:
                raise MediaError(
                    "decode_unsupported", f"the {found.label} is in a codec that is not read here"
                )
            size = context.width * context.height
            check_frame(found, context.width, context.height, limits)
            # The decoder itself refuses larger frames, before it takes memory for them.
            context.options = ceiling
            context.thread_count = 1
            yield container, stream
    except MemoryError as error:  # also the library's own
        raise MediaError("decode_too_large", f"no memory to decode the {found.label}") from error
    except av.FFmpegError as error:
        # Where a header tells a size beyond its ceiling, the decoder hides that size and refuses.
        if isinstance(error, av.ArgumentError) and not size:
            raise MediaError(
                "decode_too_large",
                f"the {found.label} cannot be decoded: its frames are beyond the limit of "
                f"{limits.max_video_pixels} pixels, or their size is not told",
            ) from error
        # What a decoder says of a frame beyond its ceiling; a few say it of damage as well.
        hint = f", or a frame is beyond the limit of {limits.max_video_pixels} pixels"
        hint = hint if isinstance(error, av.ArgumentError) else ""
        raise MediaError(
            "decode_corrupt", f"the {found.label} is damaged: {error.strerror or error}{hint}"
        ) from error


def check_frame(found: Format, width: int, height: int, limits: MediaLimits) -> None:
    """Raises MediaError decode_too_large for a frame beyond the ceiling."""
    if width * height > limits.max_video_pixels:
        raise MediaError(
            "decode_too_large",
            f"a frame of the {found.label} is {width} x {height} = {width * height} pixels; "
            f"the limit is {limits.max_video_pixels}",
        )
    if max(width, height) > limits.max_side:
        raise MediaError(
            "decode_too_large",
            f"a frame of the {found.label} is {width} x {height} pixels; "
            f"the limit of one side is {limits.max_side}",
        )


def _sorted(stamps: "array[int]") -> "array[int]":
    """Without an object for each: a day's video has millions."""
    found = array("q")
    found.frombytes(np.sort(np.frombuffer(stamps, np.int64), kind="stable").tobytes())
    return found


def _too_many(found: Format, count: int, limits: MediaLimits) -> MediaError:
    return MediaError(
        "decode_too_large",
        f"the {found.label} has at least {count} packets; the limit is {limits.max_packets}",
    )
