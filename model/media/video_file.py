"""Opens video files with FFmpeg, safely, and scans their packets without decoding.

Only this file opens a video. FFmpeg gets a file object and never a name or a protocol.
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
from mediamill.model.media.animations import AVIF_ANIMATION, WEBP_ANIMATION, webp_timeline
from mediamill.model.media.checksums import damage_notes
from mediamill.model.media.container_crop import container_crop
from mediamill.model.media.containers import FileFormat
from mediamill.model.media.display import Display
from mediamill.model.media.keyframes import KeyframeIndex, KeyframeIndexBuilder
from mediamill.model.media.limits import MediaLimits, check_size, out_of_memory_as_media_error
from mediamill.model.media.media_file import MediaFile, Source
from mediamill.model.media.mp4_boxes import declared_samples
from mediamill.model.media.packets import TimedPackets, is_repeat
from mediamill.model.media.timeline import Timeline
from mediamill.model.media.transport_stream import transport_codecs

# Without protocols a demuxer cannot follow references to other files. Most other options repeat
# FFmpeg's defaults, so that a new version cannot change them. Demuxers ignore unknown options.
_SAFE_OPTIONS = {
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "use_absolute_path": "0",
    "max_streams": "1000",
    "probesize": "5000000",
    # Joined transport streams may number their streams anew; players go on with the same ones.
    "merge_pmt_versions": "1",
}
# Options with which a decoder raises an error where it would otherwise conceal damage.
STOP_AT_DAMAGE = {"err_detect": "crccheck+bitstream+buffer+explode"}
# These formats find streams while they are read, and FFmpeg then reads beyond the end of its list
# of options per stream: they get no such options.
_FFMPEG_MAX_PIXELS = 2**31 - 1  # of its option
_FORMATS_WITH_LATE_STREAMS = ("mpeg", "mpegts", "flv")


@dataclass(frozen=True)
class PacketScan:
    """What the packets of a stream tell without decoding.

    timeline: the times of the frames; without timestamps if some packets have none.
    keyframes: where decoding can start.
    display: how the frames are shown.
    notes: how the times were corrected, in words.
    """

    timeline: Timeline
    keyframes: KeyframeIndex
    display: Display
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Approximate size in memory, in bytes."""
        return 8 * (len(self.timeline.timestamps) + len(self.keyframes.values))


def scan_packets(source: Source, file_format: FileFormat, limits: MediaLimits) -> PacketScan:
    """Reads all packets of the best video stream.

    Raises MediaError as `open_video`, media_empty for a stream without packets, and
    decode_unsupported for a transport stream that changes its codec.
    """
    media_file = MediaFile.of(source)
    if file_format == WEBP_ANIMATION:
        timeline, size = webp_timeline(media_file, limits)
        return PacketScan(timeline, KeyframeIndex(), Display.of(size, None))
    check_sample_count(media_file, file_format, limits)
    if file_format.name == "mpegts" and len(codecs := transport_codecs(media_file)) > 1:
        raise MediaError(
            "decode_unsupported",
            f"the {file_format.label} goes on in another codec ({', then '.join(codecs)})",
        )
    timestamps = array("q")
    last_end: int | None = None
    all_timed = True
    repeats = 0
    with open_video(media_file, file_format, limits) as (container, stream):
        time_base = stream.time_base or Fraction(1, 1000)
        rate = float(stream.average_rate or stream.base_rate or 25)
        context = stream.codec_context
        display = _display(media_file, file_format, container, stream)
        builder = KeyframeIndexBuilder(file_format.name, context.name, context.extradata or b"")
        packets = TimedPackets(container, stream, file_format.name)
        for number, packet in enumerate(packets):
            if packet.pts is None and packet.dts is None and not packet.size:
                continue
            if number >= limits.max_packets:
                raise _too_many_packets(file_format, number + 1, limits)
            repeats += is_repeat(packet)
            # A repeated picture has no packet of its own to decode.
            if (
                is_repeat(packet)
                or packet.has_sidedata("new_extradata")
                or packet.has_sidedata("param_change")
            ):
                builder.disable()
            keyframe = bytes(packet) if packet.is_keyframe and builder.usable else None
            builder.add(number, packet.pts, keyframe, is_shown=not packet.is_discard)
            if packet.is_discard:
                continue
            if packet.pts is None:
                all_timed = False
                continue
            timestamps.append(packet.pts)
            if packet.duration:
                end = packet.pts + packet.duration
                last_end = end if last_end is None else max(last_end, end)
    notes = (*packets.notes, *damage_notes(media_file, file_format.name))
    if repeats:
        notes = (*notes, f"{repeats} empty packets repeat the frame before them")
    if all_timed and not timestamps:
        raise MediaError("media_empty", f"the {file_format.label} holds no frames")
    if not all_timed:
        timeline = Timeline(array("q"), last_end or 0, time_base)
        return PacketScan(timeline, KeyframeIndex(), display, notes)
    timeline = Timeline.build(_sorted(timestamps), last_end, time_base, rate)
    if packets.jumps:
        # The container's index knows the times of the file only.
        builder.seekable = False
    return PacketScan(timeline, builder.build(), display, notes)


def _display(
    media_file: MediaFile, file_format: FileFormat, container: InputContainer, stream: VideoStream
) -> Display:
    """Returns how the frames of a stream are shown, by the file's headers."""
    size = stream.codec_context.height, stream.codec_context.width
    streams = list(container.streams.video)
    notes: list[str] = []
    has_alpha_track = (
        file_format == AVIF_ANIMATION and sum(track.frames > 1 for track in streams) > 1
    )
    if has_alpha_track or stream.metadata.get("alpha_mode") == "1":
        notes.append("transparency of the video is not used")
    crop = container_crop(media_file, file_format.name, streams.index(stream), size)
    # FFmpeg's guess, as players': the container's shape of pixels wins over the codec's.
    return Display.of(size, stream.sample_aspect_ratio, crop, tuple(notes))


def check_sample_count(source: Source, file_format: FileFormat, limits: MediaLimits) -> None:
    """Raises MediaError decode_too_large for an MP4 file that declares more than max_packets.

    Opening the file would allocate memory for each declared sample.
    """
    if file_format.name != "mov":
        return
    samples = declared_samples(MediaFile.of(source))
    if samples > limits.max_packets:
        raise _too_many_packets(file_format, samples, limits)


@contextmanager
def open_video(
    source: Source, file_format: FileFormat, limits: MediaLimits
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file: yields the container and its best video stream.

    Raises MediaError decode_unsupported, decode_too_large or decode_corrupt, also for what FFmpeg
    raises while the stream is in use.
    """
    size = 0
    max_pixels = {"max_pixels": str(min(limits.max_video_pixels, _FFMPEG_MAX_PIXELS))}
    try:
        with (
            out_of_memory_as_media_error(file_format.label),
            MediaFile.of(source).open() as handle,
            av.open(
                handle,
                "r",
                format=file_format.name,
                container_options=_SAFE_OPTIONS,
                options={} if file_format.name in _FORMATS_WITH_LATE_STREAMS else max_pixels,
                metadata_errors="replace",
            ) as container,
        ):
            stream = _main_stream(container, file_format)
            if stream is None:
                raise MediaError(
                    "decode_unsupported", f"the {file_format.label} holds no video stream"
                )
            context = stream.codec_context
            if context is None:
                raise MediaError(
                    "decode_unsupported",
                    f"the {file_format.label} is in a codec that is not supported",
                )
            size = context.width * context.height
            check_frame_size(file_format, context.width, context.height, limits)
            # The decoder itself refuses larger frames, before it allocates memory for them.
            context.options = max_pixels
            context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        # If a header declares a size beyond max_pixels, the decoder refuses and leaves the size 0.
        if isinstance(error, av.ArgumentError) and not size:
            raise MediaError(
                "decode_too_large",
                f"the {file_format.label} cannot be decoded: its frames are beyond the limit of "
                f"{limits.max_video_pixels} pixels, or their size is not declared",
            ) from error
        # Decoders raise ArgumentError for a frame beyond max_pixels, a few also for damage.
        hint = f", or a frame is beyond the limit of {limits.max_video_pixels} pixels"
        hint = hint if isinstance(error, av.ArgumentError) else ""
        raise MediaError(
            "decode_corrupt", f"the {file_format.label} is damaged: {error.strerror or error}{hint}"
        ) from error


def _main_stream(container: InputContainer, file_format: FileFormat) -> VideoStream | None:
    """Returns the video stream that players show; None if there are only cover pictures."""
    attached = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & attached]
    if file_format == AVIF_ANIMATION:
        # The others are still pictures, and the transparency of this one.
        streams = [stream for stream in streams if stream.frames > 1][:1] or streams
    best = container.streams.best("video")
    return best if best in streams else next(iter(streams), None)


@contextmanager
def conversion_errors_as_media_errors(file_format: FileFormat) -> Iterator[None]:
    """Turns FFmpeg's errors while it converts a decoded frame to RGB into MediaError.

    The code is decode_unsupported, such as for a colour space that FFmpeg only decodes, or
    decode_too_large for a failed allocation.
    """
    try:
        with out_of_memory_as_media_error(file_format.label):
            yield
    except av.FFmpegError as error:
        raise MediaError(
            "decode_unsupported",
            f"the colours of the {file_format.label} cannot be converted to RGB: "
            f"{error.strerror or error}",
        ) from error


def check_frame_size(file_format: FileFormat, width: int, height: int, limits: MediaLimits) -> None:
    """Raises MediaError decode_too_large for a frame beyond max_video_pixels or max_side."""
    subject = f"a frame of the {file_format.label}"
    check_size(subject, width, height, limits.max_video_pixels, limits.max_side)


def _sorted(timestamps: "array[int]") -> "array[int]":
    """Sorts without a Python object for each timestamp: a day of video has millions."""
    ascending = array("q")
    ascending.frombytes(np.sort(np.frombuffer(timestamps, np.int64), kind="stable").tobytes())
    return ascending


def _too_many_packets(file_format: FileFormat, count: int, limits: MediaLimits) -> MediaError:
    return MediaError(
        "decode_too_large",
        f"the {file_format.label} has at least {count} packets; the limit is {limits.max_packets}",
    )
