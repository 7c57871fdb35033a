"""Makes videos whose few bytes need very much memory or time, or that declare wrong facts."""

import functools
import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from tests import media
from tests.hostile.bomb import Bomb
from tests.hostile.picture_bombs import gif, gif_frame, png
from tests.hostile.samples import Sample, samples
from tests.hostile.structure import chunks_of

CORRUPT, UNSUPPORTED, LARGE = "decode_corrupt", "decode_unsupported", "decode_too_large"
EMPTY = "media_empty"
ANY = {"ok", CORRUPT, UNSUPPORTED, LARGE, EMPTY}


@functools.cache
def _samples() -> dict[str, Sample]:
    return {sample.name: sample for sample in samples()}


def valid_sample(name: str) -> bytes:
    """Returns the valid sample of this name."""
    return _samples()[name].data


def box(name: bytes, *bodies: bytes) -> bytes:
    """An MP4 box."""
    body = b"".join(bodies)
    return struct.pack(">I", len(body) + 8) + name + body


def _patched(data: bytes, name: bytes, at: int, value: bytes) -> bytes:
    """Data with `value` behind the first box or element called `name`, `at` bytes behind it."""
    place = data.index(name) + len(name) + at
    return data[:place] + value + data[place + len(value) :]


def _mp4(name: bytes, at: int, value: bytes, sample: str = "MP4 H.264") -> bytes:
    return _patched(valid_sample(sample), name, at, value)


def mp4_of(*tables: bytes, tracks: int = 1, size: tuple[int, int] = (64, 64)) -> bytes:
    """An MP4 of MPEG-4 video with these sample tables and hardly any data."""
    width, height = size
    head = bytes(6) + b"\0\1" + bytes(16) + struct.pack(">HH", width, height)
    entry = box(b"mp4v", head, bytes(50))
    described = box(b"stsd", bytes(4), struct.pack(">I", 1), entry)
    sizes = struct.pack(">IIIIIII", 0, 0, 0, 1000, 1000, 0, 0)
    track = box(
        b"trak",
        box(b"tkhd", bytes(84)),
        box(
            b"mdia",
            box(b"mdhd", sizes[:24]),
            box(b"hdlr", bytes(8), b"vide", bytes(12), b"v\0"),
            box(b"minf", box(b"vmhd", bytes(12)), box(b"stbl", described, *tables)),
        ),
    )
    head_box = box(b"mvhd", bytes(12), struct.pack(">II", 1000, 1000), bytes(80))
    return (
        box(b"ftyp", b"isom", bytes(4), b"isom")
        + box(b"moov", head_box, track * tracks)
        + box(b"mdat", bytes(64))
    )


def _table(name: bytes, *numbers: int) -> bytes:
    return box(name, bytes(4), struct.pack(f">{len(numbers)}I", *numbers))


def _tables(samples: int, size: int = 1, chunks: int | None = None) -> Sequence[bytes]:
    """Tables of `samples` samples of `size` bytes, in one chunk or in `chunks` of them."""
    return (
        _table(b"stts", 1, samples, 1),
        _table(b"stsc", 1, 1, samples if chunks is None else 1, 1),
        _table(b"stsz", size, samples),
        _table(b"stco", 1, 48) if chunks is None else _table(b"stco", chunks, 48),
    )


def _h264_sps(width: int, height: int) -> bytes:
    """A sequence parameter set of the baseline profile, of this many pixels."""
    bits = ""

    def ue(value: int) -> None:
        nonlocal bits
        binary = f"{value + 1:b}"
        bits += "0" * (len(binary) - 1) + binary

    for value in (0, 0, 2, 1):  # id, frame numbers, order of display, reference frames
        ue(value)
    bits += "0"
    ue(width // 16 - 1)
    ue(height // 16 - 1)
    bits += "1" + "1" + "0" + "0" + "1"  # frames only, direct, no cropping, no VUI, stop
    bits += "0" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return bytes((0x67, 66, 0xC0, 62)) + _escaped(body)


def _escaped(body: bytes) -> bytes:
    """Returns the body with emulation prevention bytes, so that it holds no start code."""
    out, zeros = bytearray(), 0
    for byte in body:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)


def _huge_h264(width: int, height: int, times: int = 1, form: str = "mpegts") -> bytes:
    """A small H.264 stream whose headers declare another size."""
    frames = media.numbered_frames(3, 64, 96)
    options = {"bf": "0", "g": "1", "x264-params": "cabac=0:8x8dct=0:ref=1:repeat-headers=1"}
    small = media.video(frames, "h264", "libx264", options=options)
    units = small.split(b"\0\0\0\1")
    changed = b"\0\0\0\1".join(
        _h264_sps(width, height) if unit[:1] and unit[0] & 31 == 7 else unit for unit in units
    )
    if form == "h264":
        return changed * times
    return _remuxed(changed * times, form)


def _remuxed(stream: bytes, form: str) -> bytes:
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(stream), format="h264") as source,
        av.open(file, "w", format=form) as target,
    ):
        track = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.stream, packet.pts, packet.dts = track, number * 90_000, number * 90_000
                target.mux(packet)
    return file.getvalue()


def _changing(form: str, codec: str, *sizes: tuple[int, int]) -> bytes:
    """A stream whose frames change their size."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as target:
        track = None
        for number, (height, width) in enumerate(sizes):
            frames = media.numbered_frames(3, height, width)
            part = media.video(frames, form, codec, options={"g": "1", "bf": "0"})
            with av.open(io.BytesIO(part)) as source:
                if track is None:
                    track = target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts += round(number * 0.3 / packet.time_base)
                        packet.dts, packet.stream = packet.pts, track
                        target.mux(packet)
    return file.getvalue()


def _mjpeg(pictures: Sequence[bytes], form: str = "avi", codec: str = "mjpeg") -> bytes:
    """A video whose packets are these picture files."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as target:
        track = target.add_stream(codec, rate=10)
        track.height, track.width = 64, 96
        track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.stream, packet.time_base = track, Fraction(1, 10)
            packet.pts = packet.dts = number
            target.mux(packet)
    return file.getvalue()


def _mpeg2(sample: str) -> bytes:
    """A stream of MPEG-2 whose headers declare 16383 x 16383 pixels: 12 bits and two more each."""
    data = bytearray(valid_sample(sample))
    head, more = data.index(b"\0\0\1\xb3") + 4, data.index(b"\0\0\1\xb5") + 4
    data[head : head + 3] = b"\xff\xff\xff"
    data[more + 1] |= 1
    data[more + 2] |= 0xE0
    return bytes(data)


def _vp8() -> bytes:
    """A WebM whose first frame declares 16383 x 16383 pixels."""
    return _patched(valid_sample("WebM VP8"), b"\x9d\x01\x2a", 0, b"\xff\x3f\xff\x3f")


def _vp9() -> bytes:
    """A WebM whose first frame declares 65536 x 65536 pixels."""
    data = bytearray(valid_sample("WebM VP9"))
    at = data.index(b"\x49\x83\x42") + 3
    data[at] |= 0x0F
    data[at + 1 : at + 4] = b"\xff\xff\xff"
    data[at + 4] |= 0xF0
    return bytes(data)


def _jpeg_claiming(height: int, width: int) -> bytes:
    data = bytearray(media.jpeg(64, 96))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def element(name: str, body: bytes, size: bytes | None = None) -> bytes:
    """An EBML element; size: None = the right size, in eight bytes."""
    encoded_size = (len(body) | 1 << 56).to_bytes(8, "big") if size is None else size
    return bytes.fromhex(name) + encoded_size + body


UNKNOWN = b"\x01" + b"\xff" * 7


def _nested(depth: int) -> bytes:
    """Elements within elements, all of unknown size."""
    head = element("1a45dfa3", element("4282", b"matroska"))
    return head + element("18538067", (bytes.fromhex("1254c367") + UNKNOWN) * depth, UNKNOWN)


def _mkv_unknown_sizes(data: bytes) -> bytes:
    """The same file as a live recording."""
    changed = data
    for chunk in reversed(chunks_of(data)):
        if data[chunk.start : chunk.start + 4] in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):
            unknown = (2 ** (7 * chunk.size_bytes) - 1) | 1 << 7 * chunk.size_bytes
            size = unknown.to_bytes(chunk.size_bytes, "big")
            changed = (
                changed[: chunk.size_offset]
                + size
                + changed[chunk.size_offset + chunk.size_bytes :]
            )
    return changed


def _with_attachments(count: int) -> bytes:
    attachment = element(
        "61a7", element("466e", b"a.ttf") + element("4660", b"font/ttf") + element("465c", b"x" * 9)
    )
    return with_elements(element("1941a469", attachment * count))


def with_elements(more: bytes) -> bytes:
    """An MKV with further elements in its segment, whose size is updated."""
    data = valid_sample("MKV H.264")
    segment = next(p for p in chunks_of(data) if data[p.start : p.start + 4] == b"\x18\x53\x80\x67")
    tracks = next(p for p in chunks_of(data) if data[p.start : p.start + 4] == b"\x16\x54\xae\x6b")
    body = data[segment.body : tracks.start] + more + data[tracks.start :]
    return data[: segment.start] + element("18538067", body)


def _tracks(count: int) -> bytes:
    """An MKV of `count` tracks."""
    data = valid_sample("MKV H.264")
    tracks = next(p for p in chunks_of(data) if data[p.start : p.start + 4] == b"\x16\x54\xae\x6b")
    track = next(p for p in chunks_of(data) if p.start >= tracks.body and data[p.start] == 0xAE)
    entry = data[track.start : track.end]
    segment = next(p for p in chunks_of(data) if data[p.start : p.start + 4] == b"\x18\x53\x80\x67")
    body = (
        data[segment.body : tracks.start] + element("1654ae6b", entry * count) + data[tracks.end :]
    )
    return data[: segment.start] + element("18538067", body)


def _fragments(count: int) -> bytes:
    """An MP4 with its fragments repeated."""
    data = valid_sample("MP4 fragmented")
    start = data.index(b"moof") - 4
    stop = data.index(b"mfra") - 4
    return data[:start] + data[start:stop] * count + data[stop:]


def _with_cover() -> bytes:
    """Sound with a picture for its cover."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as target:
        track = target.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        target.add_attachment("cover.jpg", "image/jpeg", media.jpeg(64, 64))
        target.mux(track.encode(frame))
        target.mux(track.encode(None))
    return file.getvalue()


def _subtitles() -> bytes:
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(b"1\n00:00:00,000 --> 00:00:01,000\nsaid\n\n"), format="srt") as source,
        av.open(file, "w", format="matroska") as target,
    ):
        track = target.add_stream_from_template(source.streams.subtitles[0])
        for packet in source.demux():
            if packet.size:
                packet.stream = track
                target.mux(packet)
    return file.getvalue()


def _no_tables() -> bytes:
    """A transport stream without the packets that list its streams."""
    data = valid_sample("TS H.264")
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    return b"".join(
        packet
        for packet in packets
        if int.from_bytes(packet[1:3], "big") & 0x1FFF not in (0, 0x1000)
    )


def _programs(count: int) -> bytes:
    """A transport stream of `count` streams, each announced by a packet of its own."""
    packet = bytearray(valid_sample("TS H.264")[188 * 20 : 188 * 21])
    packets = []
    for number in range(count):
        packet[1:3] = (0x4000 | 0x100 + number % 0x1E00).to_bytes(2, "big")
        packet[4:13] = b"\0\0\1\xe0\0\0\x80\0\0"
        packets.append(bytes(packet))
    return b"".join(packets)


def _huge(width: int, height: int) -> Image.Image:
    return Image.new("L", (width, height))


VIDEO_BOMBS: dict[str, Bomb] = {
    # MP4 and MOV
    "MP4 of 2^32 samples": Bomb(lambda: mp4_of(*_tables(2**32 - 1)), {LARGE, CORRUPT}),
    "MP4 of 2^30 samples of no size": Bomb(
        lambda: mp4_of(*_tables(2**30, 0)), {LARGE, CORRUPT, EMPTY}
    ),
    "MP4 of 10^8 samples": Bomb(lambda: mp4_of(*_tables(10**8)), LARGE),
    "MP4 of 10^8 samples in three tracks": Bomb(lambda: mp4_of(*_tables(10**8), tracks=3), LARGE),
    "MP4 of 2^31 chunks": Bomb(lambda: mp4_of(*_tables(2**31, 1, 2**31)), ANY - {"ok"}),
    "MP4 with 2^32 entries of ctts": Bomb(
        lambda: mp4_of(*_tables(4), _table(b"ctts", 2**32 - 1, 2**32 - 1, 1)), ANY - {"ok"}
    ),
    "MP4 with one entry of ctts for 2^31": Bomb(
        lambda: mp4_of(*_tables(4), _table(b"ctts", 1, 2**31 - 1, 1)), ANY - {"ok"}
    ),
    "MP4 with 2^32 entries of stsd": Bomb(lambda: _mp4(b"stsd", 4, b"\xff" * 4), ANY),
    "MP4 with 2^32 key frames": Bomb(lambda: _mp4(b"stss", 4, b"\xff" * 4), ANY),
    "MP4 with 2^32 edits": Bomb(lambda: _mp4(b"elst", 4, b"\xff" * 4), ANY),
    "MP4 with an edit of 10^12 s": Bomb(
        lambda: _mp4(b"elst", 8, struct.pack(">iI", 2**31 - 1, 2**31 - 1)), ANY
    ),
    "MP4 with a negative edit": Bomb(
        lambda: _mp4(b"elst", 8, struct.pack(">Ii", 9, -(2**31))), ANY
    ),
    "MP4 with a moov of 2 GB": Bomb(
        lambda: _patched(valid_sample("MP4 H.264"), b"moov", -8, struct.pack(">I", 2**31 - 1)),
        CORRUPT,
    ),
    "MP4 with a moov of 2^63": Bomb(
        lambda: valid_sample("MP4 H.264")[:32] + struct.pack(">I4sQ", 1, b"moov", 2**63 - 1),
        CORRUPT,
    ),
    "MP4 of 10^12 s": Bomb(
        lambda: mp4_of(
            _table(b"stts", 1, 4, 2**31 - 1),
            _table(b"stsc", 1, 1, 4, 1),
            _table(b"stsz", 1, 4),
            _table(b"stco", 1, 48),
        ),
        {LARGE, CORRUPT},
    ),
    "MP4 with a time base of 2^-31": Bomb(
        lambda: _mp4(b"mdhd", 12, struct.pack(">I", 2**31 - 1)), ANY
    ),
    "MP4 with a time base of nothing": Bomb(lambda: _mp4(b"mdhd", 12, bytes(4)), ANY),
    "MP4 of 65535 x 65535": Bomb(
        lambda: mp4_of(*_tables(4, 16), size=(65_535, 65_535)), {CORRUPT, LARGE}
    ),
    "MP4 of no size": Bomb(lambda: mp4_of(*_tables(4, 16), size=(0, 0)), ANY - {"ok"}),
    "MP4 of 5000 tracks": Bomb(lambda: mp4_of(*_tables(4, 16), tracks=5000), {LARGE, CORRUPT}),
    "MP4 of 1000 fragments": Bomb(lambda: _fragments(1000), {"ok", CORRUPT, LARGE}),
    "MP4 of a million empty boxes": Bomb(
        lambda: valid_sample("MP4 H.264")[:32] + box(b"free") * 1_000_000, {CORRUPT}
    ),
    "MP4 of boxes in boxes": Bomb(
        lambda: valid_sample("MP4 H.264")[:32] + _boxes_in_boxes(100_000), CORRUPT
    ),
    "MP4 with a fragment of 2^32 samples": Bomb(
        lambda: _mp4(b"trun", 4, b"\xff" * 4, "MP4 fragmented"), {"ok", CORRUPT, LARGE, EMPTY}
    ),
    "MP4 with a fragment of 7 10^7 samples without fields": Bomb(
        lambda: _mp4(b"trun", 0, struct.pack(">II", 0, 7 * 10**7), "MP4 fragmented"), LARGE
    ),
    "MP4 with a fragment of 4 10^6 samples without fields": Bomb(
        lambda: _mp4(b"trun", 0, struct.pack(">II", 0, 4 * 10**6), "MP4 fragmented"), ANY
    ),
    "MOV with a compressed index": Bomb(lambda: _cmov(), ANY - {"ok"}),
    # Streams of frames
    "TS of H.264 of 16384 x 16384": Bomb(lambda: _huge_h264(16_384, 16_384), {CORRUPT, LARGE}),
    "TS of H.264 of 8192 x 4320, empty": Bomb(lambda: _huge_h264(8192, 4320), {"ok", CORRUPT}),
    "MKV of H.264 of 8192 x 8192": Bomb(
        lambda: _huge_h264(8192, 8192, form="matroska"), {LARGE, CORRUPT}
    ),
    "FLV of H.264 of 8192 x 8192": Bomb(
        lambda: _huge_h264(8192, 8192, form="flv"), {LARGE, CORRUPT}
    ),
    "H.264 alone": Bomb(lambda: _huge_h264(64, 96, form="h264"), {"ok", CORRUPT}),
    "TS of MPEG-2 of 16383 x 16383": Bomb(lambda: _mpeg2("TS MPEG-2"), {LARGE, CORRUPT}),
    "PS of MPEG-2 of 16383 x 16383": Bomb(lambda: _mpeg2("PS MPEG-2"), {LARGE, CORRUPT}),
    "WebM of VP8 of 16383 x 16383": Bomb(_vp8, {LARGE, CORRUPT}),
    "WebM of VP9 of 65536 x 65536": Bomb(_vp9, {LARGE, CORRUPT}),
    "TS that grows to 8192 x 8192": Bomb(
        lambda: (
            media.video(media.numbered_frames(3, 64, 96), "mpegts", options={"g": "1"})
            + _huge_h264(8192, 8192)
        ),
        {"ok", CORRUPT, LARGE},
    ),
    "TS that grows": Bomb(
        lambda: (
            media.video(media.numbered_frames(3, 64, 96), "mpegts", "mpeg2video")
            + media.video(media.numbered_frames(3, 480, 640), "mpegts", "mpeg2video")
        ),
        {"ok", CORRUPT},
    ),
    "WebM of VP9 that grows": Bomb(
        lambda: _changing("webm", "libvpx-vp9", (64, 96), (480, 640)), "ok"
    ),
    "AVI of MJPEG bombs": Bomb(
        lambda: _mjpeg([media.jpeg(64, 96)] + [_jpeg_claiming(65_000, 65_000)] * 9),
        {LARGE, CORRUPT},
    ),
    "AVI of MJPEG within the ceiling": Bomb(
        lambda: _mjpeg([media.jpeg(64, 96), *[_jpeg_claiming(4000, 8000)] * 20]), {"ok", CORRUPT}
    ),
    "MOV of PNG bombs": Bomb(
        lambda: _mjpeg([png(60_000, 60_000)] * 3, "mov", "png"), {LARGE, CORRUPT}
    ),
    "AVI of nothing": Bomb(lambda: _mjpeg([b"\0"] * 3), {CORRUPT, LARGE}),
    "AVI with a lying index": Bomb(
        lambda: _patched(valid_sample("AVI MPEG-4"), b"idx1", 4, b"\xff" * 64), ANY
    ),
    "AVI with 2^32 frames": Bomb(
        lambda: _patched(valid_sample("AVI MPEG-4"), b"avih", 20, b"\xff" * 4), ANY
    ),
    "AVI with a rate of 2^32": Bomb(
        lambda: _patched(valid_sample("AVI MPEG-4"), b"strh", 24, b"\1\0\0\0\xff\xff\xff\xff"), ANY
    ),
    "AVI with a rate of 2^-32": Bomb(
        lambda: _patched(valid_sample("AVI MPEG-4"), b"strh", 24, b"\xff\xff\xff\xff\1\0\0\0"), ANY
    ),
    "GIF of zero delays": Bomb(lambda: gif(16, 16, gif_frame(delay=0) * 100), ANY, kind="video"),
    # MKV and WebM
    "MKV of unknown sizes": Bomb(lambda: _mkv_unknown_sizes(valid_sample("MKV H.264")), "ok"),
    "MKV of elements in elements": Bomb(lambda: _nested(100_000), ANY - {"ok"}),
    "MKV of 5000 attachments": Bomb(lambda: _with_attachments(5000), {"ok", LARGE, CORRUPT}),
    "MKV of 5000 tracks": Bomb(lambda: _tracks(5000), {"ok", LARGE, CORRUPT}),
    "MKV of 2^62 x 2^62": Bomb(
        lambda: _patched(valid_sample("MKV H.264"), b"\xb0", 0, b"\x88" + b"\x7f" * 8), ANY
    ),
    "MKV with a cluster of 2^56": Bomb(
        lambda: _patched(
            valid_sample("MKV H.264"), b"\x1f\x43\xb6\x75", 0, b"\x01" + b"\xff" * 6 + b"\xfe"
        ),
        ANY,
    ),
    "MKV with a time base of nothing": Bomb(
        lambda: _patched(valid_sample("MKV H.264"), b"\x2a\xd7\xb1", 0, b"\x83\0\0\0"), ANY
    ),
    "MKV with a cover for a video": Bomb(_with_cover, UNSUPPORTED),
    "MKV of subtitles": Bomb(_subtitles, UNSUPPORTED),
    "MP4 of valid_sample": Bomb(media.audio_only, UNSUPPORTED),
    "MP4 of valid_sample as video": Bomb(media.audio_only, UNSUPPORTED, kind="video"),
    # Transport streams
    "TS without tables": Bomb(_no_tables, {"ok", CORRUPT, UNSUPPORTED, EMPTY}),
    "TS of 5000 streams": Bomb(lambda: _programs(5000), ANY),
    "TS of nothing but sync": Bomb(
        lambda: (b"\x47\x1f\xff\x10" + bytes(184)) * 50_000, ANY - {"ok"}
    ),
    "PS of zeros": Bomb(lambda: b"\0\0\1\xba" + bytes(5_000_000), ANY - {"ok"}),
    "FLV with a tag of 16 MB": Bomb(
        lambda: b"FLV\1\1\0\0\0\x09\0\0\0\0\x09\xff\xff\xff" + bytes(100), ANY - {"ok"}
    ),
    "FLV of objects in objects": Bomb(
        lambda: (
            b"FLV\1\1\0\0\0\x09\0\0\0\0\x12\0\xff\xff\0\0\0\0\0\0\0"
            + b"\x02\0\x0aonMetaData"
            + b"\x03\0\1a" * 16_000
        ),
        ANY - {"ok"},
    ),
    "Windows that hold nothing": Bomb(lambda: valid_sample("MP4 H.264"), EMPTY, None, 1e300, 1e301),
    "Windows of no number": Bomb(lambda: valid_sample("MP4 H.264"), EMPTY, None, float("nan"), 1.0),
    "Windows of everything": Bomb(lambda: valid_sample("MP4 H.264"), "ok", None, -1e300, 1e300),
}


def _boxes_in_boxes(depth: int) -> bytes:
    return b"".join(
        struct.pack(">I", 8 * (depth - number)) + (b"moov" if number == 0 else b"udta")
        for number in range(depth)
    )


def _cmov() -> bytes:
    """QuickTime's packed index, which declares an unpacked size of 2 GB."""
    import zlib

    packed = struct.pack(">I", 2**31 - 1) + zlib.compress(bytes(10_000_000))
    inner = box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", packed))
    return box(b"ftyp", b"qt  ", bytes(4)) + box(b"moov", inner) + box(b"mdat", bytes(64))
