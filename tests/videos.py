"""Makes odd video files for tests: joined, cut, patched, with headers that few encoders write."""

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

from tests.media import numbered_frames

X265_QUIET = {"x265-params": "log-level=none:bframes=0:rc-lookahead=0"}
FRAMES = numbered_frames(8, 48, 64)


def encoded(
    frames: Sequence[np.ndarray] = FRAMES,
    form: str = "mp4",
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rate: int = 10,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pixel_shape: Fraction | None = None,
    transfer: int | None = None,
    source_format: str = "rgb24",
) -> bytes:
    """Makes a video file. pixel_shape, transfer: what its headers say of the frames."""
    file = io.BytesIO()
    with av.open(file, "w", format=form, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.thread_count = pixel_format, 1
        if pixel_shape is not None:
            stream.codec_context.sample_aspect_ratio = pixel_shape
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format=source_format)))
        container.mux(stream.encode(None))
    return file.getvalue()


def remuxed(data: bytes, form: str, time_s: Callable[[int], float] | None = None) -> bytes:
    """Returns the same packets in a container. time_s: seconds added to the packet of a number."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(file, "w", format=form, options={"avoid_negative_ts": "disabled"}) as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        number = 0
        for packet in source.demux(video=0):
            if packet.dts is None:
                continue
            if time_s is not None:
                shift = round(time_s(number) / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = stream
            container.mux(packet)
            number += 1
    return file.getvalue()


def with_matrix(mp4: bytes, numbers: Sequence[float]) -> bytes:
    """Returns an MP4 file with another display matrix (a, b, c, d) of its only track."""
    a, b, c, d = (round(number * 65536) for number in numbers)
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    start = mp4.index(b"tkhd") + 4 + 40
    return mp4[:start] + matrix + mp4[start + 36 :]


def with_clean_aperture(mp4: bytes, width: int, height: int, right: int, down: int) -> bytes:
    """Returns an MP4 file, whose index is at the end, with a clap box in its only track."""
    box = struct.pack(">I4sIIIIiIiI", 40, b"clap", width, 1, height, 1, right, 1, down, 1)
    changed = bytearray(mp4)
    entry = mp4.index(b"avc1", mp4.index(b"stsd"))
    end = entry - 4 + int.from_bytes(mp4[entry - 4 : entry], "big")
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = entry if name == b"avc1" else mp4.rindex(name, 0, entry)
        size = int.from_bytes(mp4[place - 4 : place], "big") + len(box)
        changed[place - 4 : place] = size.to_bytes(4, "big")
    return bytes(changed[:end]) + box + bytes(changed[end:])
