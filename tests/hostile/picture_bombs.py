"""Makes pictures whose few bytes need very much memory or time, or that declare wrong facts."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests import media
from tests.hostile.bomb import Bomb
from tests.hostile.samples import PICTURES

CORRUPT, UNSUPPORTED, LARGE = "decode_corrupt", "decode_unsupported", "decode_too_large"


def png_chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, interlaced: int = 0
) -> bytes:
    """A PNG of a header, these chunks and an end."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + _END


_END = png_chunk(b"IEND", b"")


def _rows(width: int, height: int, bytes_per_pixel: int = 3) -> bytes:
    """The IDAT of a black picture."""
    return png_chunk(b"IDAT", _zeros((width * bytes_per_pixel + 1) * height))


def _zeros(count: int) -> bytes:
    """Compresses `count` zeros quickly, by repeating one compressed block."""
    packer = zlib.compressobj(9)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1024**2)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    tail = rest.compress(bytes(count % 1024**2)) + rest.flush()
    check = struct.pack(">HH", count % 65521, 1)  # Adler's sum of zeros
    return head + block * (count // 1024**2) + tail + check


def _jpeg_of(height: int, width: int, data: bytes | None = None) -> bytes:
    """A JPEG whose frame header declares another size."""
    whole = bytearray(data or media.jpeg(16, 16))
    at = max(whole.find(b"\xff\xc0"), whole.find(b"\xff\xc2"))
    whole[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(whole)


def _many_scans(count: int, height: int = 2000, width: int = 2000) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    whole = media.encode(Image.new("L", (width, height), 90), "JPEG", progressive=True)
    start = whole.rfind(b"\xff\xda")
    scan = whole[start:-2]
    return whole[:-2] + scan * count + whole[-2:]


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _with_exif(body: bytes) -> bytes:
    data = media.jpeg(47, 61)
    return data[:2] + _segment(0xE1, b"Exif\0\0" + body) + data[2:]


def _ifd(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def tiff(*entries: tuple[int, int, int, int], following: int = 0, rest: bytes = b"") -> bytes:
    """A TIFF of one directory; entries: tag, type, count, value."""
    return b"II*\0" + struct.pack("<I", 8) + _ifd(*entries, following=following) + rest


def _tiff_sized(width: int, height: int, *more: tuple[int, int, int, int]) -> bytes:
    basic = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1)]
    given = {entry[0] for entry in more}
    defaults = [(259, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 9)]
    entries = basic + [entry for entry in defaults if entry[0] not in given] + list(more)
    return tiff(*sorted(entries), rest=bytes(64))


def _endless_directories(count: int) -> bytes:
    """A TIFF of one pixel and then `count` directories, each naming the next."""
    first = _tiff_sized(1, 1)
    at = len(first)
    entries = struct.unpack_from("<H", first, 8)[0]
    pointer = 10 + 12 * entries
    first = first[:pointer] + struct.pack("<I", at) + first[pointer + 4 :]
    directory_bytes = 2 + 12 + 4
    body = b"".join(
        _ifd((256, 4, 1, 1), following=at + directory_bytes * (n + 1)) for n in range(count - 1)
    )
    return first + body + _ifd((256, 4, 1, 1))


def gif(
    width: int, height: int, frames: bytes = b"", head: bytes = b"GIF89a", flags: int = 0x80
) -> bytes:
    """A GIF of a canvas with two colours, and these frames."""
    colours = b"\0\0\0\xff\xff\xff" if flags & 0x80 else b""
    return head + struct.pack("<HHBBB", width, height, flags, 0, 0) + colours + frames + b";"


def gif_frame(width: int = 1, height: int = 1, x: int = 0, y: int = 0, delay: int = 0) -> bytes:
    """Makes a frame of one pixel, whatever size it declares."""
    control = b"!\xf9\x04\0" + struct.pack("<H", delay) + b"\0\0"
    return control + b"," + struct.pack("<HHHHB", x, y, width, height, 0) + b"\x02\x02D\x01\0"


def _bmp(width: int, height: int, bits: int = 24, compression: int = 0, body: bytes = b"") -> bytes:
    colours = bytes(4 << bits) if bits <= 8 else b""
    start = 54 + len(colours)
    head = struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return head + info + colours + body


def _riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for name, body in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes((flags, 0, 0, 0)) + sizes


def _webp_frames(count: int) -> bytes:
    frame = PICTURES["WebP"]()[12:]
    where = bytes(6) + (60).to_bytes(3, "little") + (46).to_bytes(3, "little") + bytes(4)
    frames = [(b"ANMF", where + frame)] * count
    return _riff(_vp8x(61, 47, flags=2), (b"ANIM", bytes(6)), *frames)


def _avif_of(width: int, height: int) -> bytes:
    """An AVIF whose property declares another size."""
    data = bytearray(PICTURES["AVIF"]())
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", width, height)
    return bytes(data)


def _large_gif() -> bytes:
    """A hundred million pixels."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((10_000, 10_000), np.uint8)).save(file, "GIF")
    return file.getvalue()


PICTURE_BOMBS: dict[str, Bomb] = {
    # PNG
    "PNG of 100 MP": Bomb(lambda: png(10_000, 10_000, _rows(10_000, 10_000)), "ok", pixels=10**8),
    "PNG RGBA of 100 MP": Bomb(
        lambda: png(10_000, 10_000, _rows(10_000, 10_000, 4), colour=6), "ok", pixels=10**8
    ),
    "PNG interlaced of 100 MP, empty": Bomb(
        lambda: png(10_000, 10_000, _rows(9, 9), interlaced=1), CORRUPT
    ),
    "PNG beyond the ceiling": Bomb(lambda: png(60_000, 60_000, _rows(9, 9)), LARGE),
    "PNG of the largest size": Bomb(lambda: png(2**31 - 1, 2**31 - 1, _rows(9, 9)), LARGE),
    "PNG of no size": Bomb(lambda: png(0, 0, _rows(9, 9)), CORRUPT),
    "PNG strip": Bomb(lambda: png(1, 100_000_000, _rows(1, 1000)), LARGE),
    "PNG strip within the side": Bomb(lambda: png(150_000, 1, _rows(150_000, 1)), UNSUPPORTED),
    "PNG with a gigabyte of IDAT": Bomb(
        lambda: png(16, 16, png_chunk(b"IDAT", _zeros(2**30))), {"ok", CORRUPT}
    ),
    "PNG with a gigabyte of zTXt": Bomb(
        lambda: png(16, 16, png_chunk(b"zTXt", b"a\0\0" + _zeros(2**30)), _rows(16, 16)),
        {"ok", CORRUPT},
    ),
    "PNG with a gigabyte of iTXt": Bomb(
        lambda: png(16, 16, png_chunk(b"iTXt", b"a\0\1\0\0\0" + _zeros(2**30)), _rows(16, 16)),
        {"ok", CORRUPT},
    ),
    "PNG with a gigabyte of iCCP": Bomb(
        lambda: png(16, 16, png_chunk(b"iCCP", b"a\0\0" + _zeros(2**30)), _rows(16, 16)),
        {"ok", CORRUPT},
    ),
    "PNG with 20000 texts of 64 kB": Bomb(
        lambda: png(
            16,
            16,
            png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(65_536))) * 20_000,
            _rows(16, 16),
        ),
        {"ok", CORRUPT},
    ),
    "PNG with a chunk of 2 GB": Bomb(
        lambda: png(16, 16)[:-12] + struct.pack(">I", 2**31 - 1) + b"IDAT", CORRUPT
    ),
    "APNG of a billion frames": Bomb(
        lambda: png(16, 16, png_chunk(b"acTL", struct.pack(">II", 2**30, 0)), _rows(16, 16)),
        {"ok", CORRUPT},
    ),
    "APNG with a huge frame": Bomb(
        lambda: png(
            16,
            16,
            png_chunk(b"acTL", struct.pack(">II", 1, 0)),
            png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 2**30, 2**30, 0, 0, 1, 1, 0, 0)),
            _rows(16, 16),
        ),
        CORRUPT,
    ),
    # JPEG
    "JPEG of 65535 x 65535": Bomb(lambda: _jpeg_of(65_535, 65_535), LARGE),
    "JPEG of 12000 x 12000, empty": Bomb(
        lambda: _jpeg_of(12_000, 12_000), {"ok", CORRUPT}, pixels=144_000_000
    ),
    "JPEG of no height": Bomb(lambda: _jpeg_of(0, 16), CORRUPT),
    "JPEG strip": Bomb(lambda: _jpeg_of(65_000, 1), {CORRUPT, UNSUPPORTED}),
    "JPEG of 20000 scans": Bomb(lambda: _many_scans(20_000), LARGE),
    "JPEG of 5000 comments": Bomb(
        lambda: b"\xff\xd8" + _segment(0xFE, bytes(60_000)) * 500 + media.jpeg(47, 61)[2:], "ok"
    ),
    "JPEG after a million fill bytes": Bomb(
        lambda: b"\xff\xd8" + b"\xff" * 1_000_000 + media.jpeg(47, 61)[2:], {"ok", CORRUPT}
    ),
    "JPEG with a cyclic EXIF": Bomb(
        lambda: _with_exif(tiff((0x8769, 4, 1, 8), (0x0112, 3, 1, 6), following=8)), "ok"
    ),
    "JPEG with a huge EXIF": Bomb(
        lambda: _with_exif(tiff((0x0112, 3, 2**32 - 1, 8), (0x010E, 2, 2**32 - 1, 0))), "ok"
    ),
    "JPEG with a lying orientation": Bomb(lambda: _with_exif(tiff((0x0112, 3, 1, 200))), "ok"),
    "JPEG with an orientation of text": Bomb(
        lambda: _with_exif(tiff((0x0112, 2, 4, 0x41414141))), "ok"
    ),
    "JPEG with an EXIF of nothing": Bomb(lambda: _with_exif(b""), "ok"),
    "JPEG with an EXIF beyond its end": Bomb(
        lambda: _with_exif(b"II*\0" + struct.pack("<I", 2**32 - 1)), "ok"
    ),
    # GIF
    "GIF of 100 MP": Bomb(_large_gif, "ok", pixels=10**8, slow=True),
    "GIF of 65535 x 65535": Bomb(lambda: gif(65_535, 65_535, gif_frame()), LARGE),
    "GIF of 100 MP with one pixel": Bomb(lambda: gif(10_000, 10_000, gif_frame()), {"ok", CORRUPT}),
    "GIF of no size": Bomb(lambda: gif(0, 0, gif_frame()), {"ok", CORRUPT, "media_empty"}),
    "GIF without frames": Bomb(lambda: gif(16, 16), CORRUPT),
    "GIF with a frame beyond the canvas": Bomb(
        lambda: gif(16, 16, gif_frame(65_535, 65_535)), LARGE
    ),
    "GIF with frames far away": Bomb(
        lambda: gif(16, 16, gif_frame() + gif_frame(60_000, 60_000, 5_000, 5_000)),
        {"ok", CORRUPT, LARGE},
    ),
    "GIF of 500000 frames": Bomb(lambda: gif(16, 16, gif_frame(16, 16) * 500_000), {"ok", CORRUPT}),
    "GIF of 300000 frames as video": Bomb(
        lambda: gif(16, 16, gif_frame() * 300_000), {"ok", CORRUPT, LARGE}, kind="video"
    ),
    "GIF of 65535 x 65535 as video": Bomb(
        lambda: gif(65_535, 65_535, gif_frame() * 3), LARGE, kind="video"
    ),
    "GIF of 100 MP as video": Bomb(
        lambda: gif(10_000, 10_000, gif_frame() * 3), LARGE, kind="video"
    ),
    "GIF of no size as video": Bomb(
        lambda: gif(0, 0, gif_frame() * 3), {CORRUPT, LARGE, "media_empty"}, kind="video"
    ),
    # WebP
    "WebP with a lying canvas": Bomb(
        lambda: _riff(_vp8x(16_384, 16_384), (b"VP8 ", PICTURES["WebP"]()[20:])), LARGE
    ),
    "WebP with a canvas of 12000 x 12000": Bomb(
        lambda: _riff(_vp8x(12_000, 12_000), (b"VP8 ", PICTURES["WebP"]()[20:])), CORRUPT
    ),
    "WebP with a canvas of 2^24 x 2^24": Bomb(
        lambda: _riff(_vp8x(2**24, 2**24), (b"VP8 ", PICTURES["WebP"]()[20:])), LARGE
    ),
    "WebP animation with a canvas of 144 MP": Bomb(
        lambda: _riff(_vp8x(12_000, 12_000, flags=2), (b"ANIM", bytes(6)), (b"ANMF", bytes(16))),
        CORRUPT,
    ),
    "WebP of 100 MP": Bomb(
        lambda: media.encode(Image.new("RGB", (10_000, 10_000)), "WEBP", method=0),
        "ok",
        pixels=10**8,
        slow=True,
    ),
    "WebP of 20000 frames": Bomb(lambda: _webp_frames(20_000), "ok"),
    "WebP of 4 GB": Bomb(
        lambda: b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff" + bytes(40), CORRUPT
    ),
    # TIFF
    "TIFF of 2^31 x 2^31": Bomb(lambda: _tiff_sized(2**31, 2**31), LARGE),
    "TIFF of 100 MP, empty": Bomb(lambda: _tiff_sized(10_000, 10_000), CORRUPT),
    "TIFF of 100 MP, packed, empty": Bomb(
        lambda: _tiff_sized(10_000, 10_000, (259, 3, 1, 32773)), CORRUPT
    ),
    "TIFF of 100 MP, LZW, empty": Bomb(
        lambda: _tiff_sized(10_000, 10_000, (259, 3, 1, 5)), CORRUPT
    ),
    "TIFF with tiles of 2^30": Bomb(
        lambda: _tiff_sized(
            64, 64, (322, 4, 1, 2**30), (323, 4, 1, 2**30), (324, 4, 1, 8), (325, 4, 1, 2**31)
        ),
        {"ok", CORRUPT, LARGE},
    ),
    "TIFF with packed tiles of 2^16": Bomb(
        lambda: _tiff_sized(
            *(64, 64, (259, 3, 1, 5), (322, 4, 1, 2**16), (323, 4, 1, 2**16)),
            *((324, 4, 1, 8), (325, 4, 1, 40)),
        ),
        {CORRUPT, LARGE},
    ),
    "TIFF with strips of 2^32": Bomb(
        lambda: _tiff_sized(64, 64, (278, 4, 1, 2**32 - 1), (279, 4, 1, 2**32 - 1)), CORRUPT
    ),
    "TIFF with 2^32 strips": Bomb(
        lambda: _tiff_sized(64, 64, (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8)), CORRUPT
    ),
    "TIFF with a tag of 4 GB": Bomb(
        lambda: _tiff_sized(8, 8, (270, 2, 2**32 - 1, 8)), {"ok", CORRUPT}
    ),
    "TIFF with 65535 samples": Bomb(
        lambda: _tiff_sized(64, 64, (277, 3, 1, 65_535)), {CORRUPT, UNSUPPORTED}
    ),
    "TIFF whose directory is its next": Bomb(
        lambda: tiff((256, 4, 1, 8), (257, 4, 1, 8), following=8), CORRUPT
    ),
    "TIFF of 300000 directories": Bomb(lambda: _endless_directories(300_000), {"ok", CORRUPT}),
    # BMP
    "BMP of 2^31 x 2^31": Bomb(lambda: _bmp(2**31 - 1, 2**31 - 1), LARGE),
    "BMP of the most negative height": Bomb(lambda: _bmp(16, -(2**31)), {CORRUPT, LARGE}),
    "BMP of a negative width": Bomb(
        lambda: _bmp(-16, 16, body=bytes(999)), {CORRUPT, LARGE, "media_empty"}
    ),
    "BMP of 100 MP, RLE, empty": Bomb(lambda: _bmp(10_000, 10_000, 8, 1, b"\0\1"), {"ok", CORRUPT}),
    "BMP of RLE jumps": Bomb(
        lambda: _bmp(1000, 1000, 8, 1, b"\0\2\xff\xff" * 50_000), {"ok", CORRUPT}
    ),
    # AVIF
    "AVIF of 65535 x 65535": Bomb(lambda: _avif_of(65_535, 65_535), {CORRUPT, LARGE}),
    "AVIF of 12000 x 12000, lying": Bomb(
        lambda: _avif_of(12_000, 12_000), {"ok", CORRUPT, LARGE}, pixels=144_000_000
    ),
}
