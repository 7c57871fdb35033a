"""Every refusal of a picture goes through a decode worker in little time, whatever it claims."""

import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator

import pillow_heif
import pytest
from PIL import Image

from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.decoding.decoder_pool import DecodeRequest, DecoderPool, MediumRequest
from mediamill.schemas.job import Limits
from tests import media
from tests.model.media.odd_base import RGB, encoded
from tests.model.media.odd_pictures import bit_fields
from tests.model.media.odd_pngs import chunk, png
from tests.model.media.odd_tiffs import tiff
from tests.model.media.test_odd_pictures import DAMAGED, UNSUPPORTED

_SECONDS = 5.0  # on a busy machine; they take milliseconds on an idle one
_HUGE = 50_000  # pixels of a side, beyond the limit
_LARGE = 12_000  # within the limit: 144 megapixels


def _scans() -> bytes:
    data = media.encode(Image.fromarray(RGB), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 600 + data[-2:]


def _jpeg(side: int, progressive: bool) -> bytes:
    data = bytearray(media.encode(Image.fromarray(RGB), "JPEG", progressive=progressive))
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def _scans_of_a_large_picture() -> bytes:
    data = _jpeg(_LARGE, True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 100 + data[-2:]


def _png(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels


def _heif(side: int) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(file)
    data = bytearray(file.getvalue())
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", side, side)
    return bytes(data)


def _jpeg2000(side: int, tile: int) -> bytes:
    data = bytearray(encoded(RGB, "JPEG2000", no_jp2=True))
    data[8:16], data[24:32] = struct.pack(">II", side, side), struct.pack(">II", tile, tile)
    return bytes(data)


def _jxl(side: int) -> bytes:
    data = bytearray(media.encode(Image.fromarray(RGB), "JXL"))
    bits = 3 << 1 | (side - 1) << 3 | 3 << 36 | (side - 1) << 38
    data[2:12] = (bits & (1 << 80) - 1).to_bytes(10, "little")
    return bytes(data)


def _tiff(side: int, **tags: int) -> bytes:
    sizes = {256: (4, struct.pack("<I", side)), 257: (4, struct.pack("<I", side))}
    more = {int(tag[1:]): (4, struct.pack("<I", value)) for tag, value in tags.items()}
    return tiff(RGB.astype("f4"), tags=sizes | more)


def _bmp(side: int, bits: int, packed: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, packed, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + bytes(1124)


def _ico(body: bytes, count: int = 1) -> bytes:
    start = 6 + 16 * count
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(body), start)
    return b"\0\0\1\0" + struct.pack("<H", count) + entry * count + body


def _claims(side: int) -> dict[str, Callable[[], bytes]]:
    """Headers of little files that claim side x side pixels."""
    two = struct.pack("<HH", side, side)
    psd = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, side, side, 8, 3) + bytes(12)
    sgi = struct.pack(">HBBHHHH", 474, 1, 1, 3, side, side, 3) + bytes(600)
    tga = struct.pack("<BBBHHBHH", 0, 0, 2, 0, 0, 0, 0, 0) + two + b"\x20\0"
    sun = struct.pack(">8I", 0x59A66A95, side, side, 24, 0, 2, 0, 0) + bytes(99)
    pcx = struct.pack("<BBBB4HHH", 10, 5, 1, 8, 0, 0, side - 1, side - 1, 72, 72) + bytes(49)
    dds = bytearray(encoded(RGB, "DDS"))
    dds[12:20] = struct.pack("<II", side, side)
    webp = b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + (side - 1).to_bytes(3, "little") * 2
    fields = bytearray(bit_fields(32, (255, 255 << 8, 255 << 16, 0), False).data)
    fields[18:26] = struct.pack("<ii", side, side)
    size = f"{side} {side}"
    files = {
        "PSD": psd + b"\0\0", "PSD packed": psd + b"\0\1", "SGI": sgi, "SUN": sun,
        "TGA": tga + bytes(8) + b"TRUEVISION-XFILE.\0", "DDS": bytes(dds), "WebP": webp + bytes(20),
        "PCX": pcx + b"\3" + struct.pack("<HH", side, 1) + bytes(58) + b"\xff\0" * 99,
        "QOI": b"qoif" + struct.pack(">IIBB", side, side, 4, 0) + b"\xfd" * 9000,
        "PPM": f"P6 {size} 255\n".encode(), "plain PBM": f"P1 {size}\n".encode() + b"0" * 99,
        "plain PPM": f"P3 {size} 255\n".encode() + b"0 " * 99, "PFM": f"PF {size} -1\n".encode(),
        "XPM": f'/* XPM */\nstatic char *x[] = {{\n"{size} 1 1",\n"a c #FF0000",\n'.encode(),
        "BMP": _bmp(side, 24, 0), "BMP packed": _bmp(side, 8, 1), "BMP fields": bytes(fields),
        "GIF": b"GIF89a" + two + bytes(3), "ICO": _ico(_png(side)), "PNG": _png(side),
    }  # fmt: skip
    drawn: dict[str, Callable[[], bytes]] = {
        "JPEG": lambda: _jpeg(side, False), "progressive JPEG": lambda: _jpeg(side, True),
        "HEIF": lambda: _heif(side), "JPEG XL": lambda: _jxl(side),
        "JPEG 2000, small tiles": lambda: _jpeg2000(side, 1),
        "TIFF": lambda: _tiff(side, t278=side), "TIFF of many strips": lambda: _tiff(side, t278=1),
        "TIFF of tiles": lambda: _tiff(side, t322=16, t323=16),
    }  # fmt: skip
    return {name: lambda data=data: data for name, data in files.items()} | drawn


_CODES = {"decode_unsupported": UNSUPPORTED, "decode_corrupt": DAMAGED}
CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    **{
        f"{name}, {code}": (lambda data=data: data, code)
        for code, files in _CODES.items()
        for name, data in files.items()
    },
    **{
        f"{name} claims too much": (draw, "decode_too_large")
        for name, draw in _claims(_HUGE).items()
    },
    **{f"{name} claims much": (draw, "decode_corrupt") for name, draw in _claims(_LARGE).items()},
    "JPEG of many scans": (_scans, "decode_too_large"),
    "JPEG of many scans of a large picture": (_scans_of_a_large_picture, "decode_too_large"),
    "JPEG of many segments": (
        lambda: b"\xff\xd8" + b"\xff\xe5\0\2" * 200_000 + media.jpeg()[2:], "decode_too_large"),
    "PNG of many chunks": (
        lambda: png(RGB)[:33] + chunk(b"abCd", b"") * 250_001, "decode_too_large"),
    "PNG of many pieces": (
        lambda: png(RGB)[:33] + chunk(b"IDAT", b"") * 250_001, "decode_too_large"),
    "GIF of a comment": (
        lambda: encoded(RGB, "GIF")[:13] + b"\x21\xfe" + (b"\xff" + b"c" * 255) * 40_000,
        "decode_corrupt"),
    "GIF of small blocks": (
        lambda: encoded(RGB, "GIF")[:13] + b"\x21\xfe" + b"\1c" * 5_000_000, "decode_corrupt"),
    "ICO of many entries": (lambda: _ico(_png(_HUGE), 65535), "decode_too_large"),
    "TIFF of many tags": (
        lambda: b"II*\0" + struct.pack("<IH", 8, 65535)
        + struct.pack("<HHII", 7, 1, 2**31, 8) * 65535,
        "decode_corrupt"),
    "BigTIFF of endless tags": (
        lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + bytes(2000), "decode_corrupt"),
}  # fmt: skip


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderPool]:
    pool = DecoderPool({"checkpoint": str(CHECKPOINT)}, Limits(decode_timeout_s=60))
    yield pool
    pool.close()


def _decode(decoder: DecoderPool, data: bytes) -> tuple[str | None, str]:
    (reply,) = decoder.prepare([DecodeRequest([MediumRequest(memoryview(data))])])
    failure = reply.failure
    return (None, "") if failure is None else (failure.code, failure.message)


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_takes_little_time(decoder: DecoderPool, name: str) -> None:
    draw, code = CASES[name]
    data = draw()
    start = time.monotonic()
    found, message = _decode(decoder, data)
    seconds = time.monotonic() - start
    assert found == code, message
    assert 20 < len(message) <= 2000
    assert seconds < _SECONDS


def test_a_directory_that_follows_itself_costs_nothing(decoder: DecoderPool) -> None:
    data = bytearray(tiff(RGB))
    base = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[base : base + 2], "little")
    at = base + 2 + 12 * count
    data[at : at + 4] = base.to_bytes(4, "little")
    assert _decode(decoder, bytes(data)) == (None, "")


def test_formats_of_other_libraries_are_read_in_the_sandbox(decoder: DecoderPool) -> None:
    picture = Image.fromarray(RGB).resize((64, 48))
    heif = io.BytesIO()
    pillow_heif.from_pillow(picture).save(heif)
    for data in (heif.getvalue(), media.encode(picture, "JXL"), media.encode(picture, "JPEG2000")):
        assert _decode(decoder, data) == (None, "")
