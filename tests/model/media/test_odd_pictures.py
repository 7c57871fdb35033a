"""Odd picture files that are whole are read as a person sees them; others get the right code."""

import contextlib
import warnings

import numpy as np
import pytest
from PIL import Image

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import detect_format
from mediamill.model.media.formats.depth import Declared, scaled_to_8_bits
from mediamill.model.media.images import read_image, read_open_picture
from tests import media
from tests.model.media import odd_base, odd_pictures, odd_pngs, odd_tiffs
from tests.model.media.odd_base import Odd
from tests.model.media.odd_pictures import GROUPS


def _what_is_wrong(odd: Odd) -> str | None:
    try:
        decoded = read_image(odd.data)
    except MediaError as error:
        return f"{error.code}: {error}"
    seen = odd.seen if odd.seen.ndim == 3 else np.repeat(odd.seen[..., None], 3, 2)
    found = decoded.pixels.permute(1, 2, 0).numpy().astype(int)
    if found.shape != seen.shape:
        return f"{found.shape} for {seen.shape}"
    if (differs := np.abs(found - seen.astype(int)).max()) > odd.levels:
        return f"differs by {differs} levels"
    if odd.note and not any(odd.note in note for note in decoded.notes):
        return f"the notes are {decoded.notes}"
    return None


@pytest.mark.parametrize("group", GROUPS)
def test_odd_pictures_are_read_as_a_person_sees_them(group: str) -> None:
    pictures = GROUPS[group]()
    assert len(pictures) > 15
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells of some metadata that they are broken
        wrong = {name: text for name, odd in pictures.items() if (text := _what_is_wrong(odd))}
    assert not wrong


def _jpeg_frame(marker: int, precision: int, colours: int) -> bytes:
    data = media.jpeg(16, 16)
    at = data.index(b"\xff\xc0")
    frame = bytes((0xFF, marker)) + data[at + 2 : at + 4] + bytes((precision,))
    return data[:at] + frame + data[at + 5 : at + 9] + bytes((colours,)) + data[at + 10 :]


def _box(name: bytes, content: bytes, version: int | None = None) -> bytes:
    start = b"" if version is None else bytes((version, 0, 0, 0))
    return (8 + len(start + content)).to_bytes(4, "big") + name + start + content


def _uncompressed_heif() -> bytes:
    item = _box(b"infe", b"\0\1\0\0unci\0", 2)
    place = b"\x44\0\0\1\0\1\0\0\0\1" + b"\0\0\1\0\0\0\0\x0c"
    size = _box(b"ipco", _box(b"ispe", b"\0\0\0\2\0\0\0\2", 0))
    parts = _box(b"hdlr", bytes(4) + b"pict" + bytes(13), 0) + _box(b"pitm", b"\0\1", 0)
    parts += _box(b"iloc", place, 0) + _box(b"iinf", b"\0\1" + item, 0)
    parts += _box(b"iprp", size + _box(b"ipma", b"\0\0\0\1\0\1\1\1", 0))
    kind = _box(b"ftyp", b"mif1\0\0\0\0mif1heif")
    return kind + _box(b"meta", parts, 0) + _box(b"mdat", bytes(64))


RGB = odd_base.RGB
# Whole files of kinds that are not read.
UNSUPPORTED = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "EPS with a preview": b"\xc5\xd0\xd3\xc6" + bytes(28),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "EMF": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60),
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "web page": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "PDF": b"%PDF-1.7\n",
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(50),
    "camera raw": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(50),
    "JPEG of 12 bits": _jpeg_frame(0xC1, 12, 3),
    "JPEG without loss": _jpeg_frame(0xC3, 8, 3),
    "JPEG-LS": _jpeg_frame(0xF7, 8, 3),
    "HEIF without compression": _uncompressed_heif(),
    "JPEG of two colours": _jpeg_frame(0xC0, 8, 2),
    "PNG of Apple": odd_pngs.png(RGB, odd_pngs.chunk(b"CgBI", b"\x50\0\x20\x02")),
    "TIFF of complex numbers": odd_tiffs.tiff(RGB.astype("f4"), tags={339: (3, b"\6\0\6\0\6\0")}),
    "TIFF of a colour filter": odd_tiffs.tiff(RGB[..., :1], photometric=32803),
    "TIFF of mixed depths": odd_tiffs.tiff(RGB, tags={258: (3, b"\x05\0\x06\0\x05\0")}),
    "TIFF of LERC": odd_tiffs.tiff(RGB.astype("f4"), tags={259: (3, b"\x47\x88")}),
    "TIFF of WebP": odd_tiffs.tiff(RGB, tags={259: (3, b"\x51\xc3")}),
    "TIFF of 24-bit floats": odd_tiffs.tiff(RGB.astype("f4"), tags={258: (3, b"\x18\0" * 3)}),
    "DDS of an unknown kind": odd_base.encoded(RGB, "DDS")[:80] + b"\x04\0\0\0ABCD" + bytes(200),
    "Photoshop of 16 bits": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\2\0\0\0\2\0\x10\0\3" + bytes(99),
}
DAMAGED = {
    "PNG": odd_pngs.png(RGB)[:200],
    "PNG without pixels": odd_pngs.png(RGB)[:33],
    "PNG header": odd_pngs.png(RGB).replace(b"IHDR\0", b"IHDR\1", 1),
    "TIFF of floats": odd_tiffs.tiff(RGB.astype("f4"), compression=8)[:-700],
    "TIFF cut": odd_tiffs.tiff(RGB.astype("u2"),
    compression=8, rows=20, tags={279: (4, b"\x99\0\0\0")}),
    "PPM": b"P6\n9 9\n255\n" + bytes(100),
    "plain PPM": b"P3\n2 2\n255\n" + b"1 2 3 4 5 6 7 8 9 10 11",
    "PGM of words": b"P2\n2 2\n255\n1 2 x 4 ",
    "PAM": b"P7\nWIDTH 9\nHEIGHT 9\nDEPTH 3\nMAXVAL 255\nENDHDR\n" + bytes(50),
    "PFM": b"PF\n9 9\n-1.0\n" + bytes(50),
    "JPEG 2000": odd_base.encoded(RGB, "JPEG2000")[:300],
    "BMP of fields": odd_pictures.bit_fields(32, (0xFF, 0xFF00, 0xFF0000, 0), False).data[:500],
    "GIF": odd_base.encoded(RGB, "GIF")[:-60],
    "DDS": odd_base.encoded(RGB, "DDS")[:-60],
    "QOI": odd_base.encoded(RGB, "QOI")[:200],
    "JPEG XL": media.encode(Image.fromarray(RGB), "JXL")[:90],
    "SGI": odd_base.encoded(RGB, "SGI")[:-60],
    "TGA": odd_base.encoded(RGB, "TGA", compression="tga_rle")[:400] + bytes(8)
    + b"TRUEVISION-XFILE.\0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code"),
    [(name, "decode_unsupported") for name in UNSUPPORTED]
    + [(name, "decode_corrupt") for name in DAMAGED],
)
def test_what_is_not_read_is_not_called_damaged(name: str, code: str) -> None:
    data = (UNSUPPORTED if code == "decode_unsupported" else DAMAGED)[name]
    with warnings.catch_warnings(action="ignore"), pytest.raises(MediaError) as caught:
        read_image(data)
    assert caught.value.code == code, caught.value
    assert len(str(caught.value)) > 25


@pytest.mark.parametrize(
    "data",
    [
        b"P2 is the second of 7 parts",
        b"P6 10 years",
        b"II* a text, MM*",
        b"DDS is short for ...",
        b"qoif, a format, " * 4,
        b"8BPS begins a Photoshop file, says this text",
        b"icns are icons" * 3,
        b"\n\5\1\x08" + b"text " * 50,
        b"#define NAME 3\nint main() { return 0; }\n",
        b"\0\0\1\0 and what follows",
        b"\0\1\2" + b"random bytes" * 9,
        np.random.default_rng(1).bytes(5000),
        bytes(5000),
        b"\0\0\2" + bytes(5000),
    ],
)
def test_a_text_is_no_picture(data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        detect_format(data)
    assert caught.value.code == "decode_unsupported"


def test_random_bytes_are_no_tga() -> None:
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(3000):
        with contextlib.suppress(MediaError):
            found += detect_format(rng.bytes(300)).name == "TGA"
    assert not found


def test_open_pictures_of_floats_are_scaled_as_files_are() -> None:
    values = RGB[..., 1].astype(np.float32)
    decoded = read_open_picture(Image.fromarray(values))
    from_file = read_image(odd_tiffs.tiff(values[..., None]))
    assert np.array_equal(decoded.pixels, from_file.pixels)
    assert decoded.notes == from_file.notes


@pytest.mark.parametrize(
    ("largest", "bits"), [(255, 8), (256, 10), (1023, 10), (1024, 12), (4096, 14), (16384, 16)]
)
def test_the_smallest_depth_that_holds_the_largest_value(largest: int, bits: int) -> None:
    values = np.array([[0, largest // 2, largest]], np.uint16)
    scaled, note = scaled_to_8_bits(values, "16-bit grey")
    assert scaled.tolist() == (values >> (bits - 8)).tolist()
    assert f"{bits} significant bits" in note or bits == 16


def test_a_declared_depth_that_is_too_small_does_not_count() -> None:
    values = np.array([[0, 5000]], np.uint16)
    scaled, note = scaled_to_8_bits(values, "16-bit grey", Declared(bits=10))
    assert scaled.tolist() == [[0, 5000 >> 6]]
    assert "14 significant bits" in note
