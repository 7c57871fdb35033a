"""Odd picture files that are whole are read as a person would see them; others get the right code."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import detect_format
from mediamill.model.media.formats.depth import Declared, scaled_to_8_bits
from mediamill.model.media.images import read_image, read_open_picture
from tests import media
from tests.model.media import odd_pictures
from tests.model.media.odd_pictures import GROUPS, Odd


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


RGB = odd_pictures.RGB
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
    "JPEG of two colours": _jpeg_frame(0xC0, 8, 2),
    "PNG of Apple": odd_pictures.png(RGB, odd_pictures.chunk(b"CgBI", b"\x50\0\x20\x02")),
    "TIFF of complex numbers": odd_pictures.tiff(
        RGB.astype("f4"), tags={339: (3, b"\6\0\6\0\6\0")}
    ),
    "TIFF of a colour filter": odd_pictures.tiff(RGB[..., :1], photometric=32803),
    "TIFF of mixed depths": odd_pictures.tiff(RGB, tags={258: (3, b"\x05\0\x06\0\x05\0")}),
    "TIFF of LERC": odd_pictures.tiff(RGB.astype("f4"), tags={259: (3, b"\x47\x88")}),
    "TIFF of WebP": odd_pictures.tiff(RGB, tags={259: (3, b"\x51\xc3")}),
    "TIFF of 24-bit floats": odd_pictures.tiff(RGB.astype("f4"), tags={258: (3, b"\x18\0" * 3)}),
    "DDS of an unknown kind": odd_pictures.encoded(RGB, "DDS")[:80]
    + b"\x04\0\0\0ABCD"
    + bytes(200),
    "Photoshop of 16 bits": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\2\0\0\0\2\0\x10\0\3" + bytes(99),
}
DAMAGED = {
    "PNG": odd_pictures.png(RGB)[:200],
    "PNG without pixels": odd_pictures.png(RGB)[:33],
    "PNG header": odd_pictures.png(RGB).replace(b"IHDR\0", b"IHDR\1", 1),
    "TIFF of floats": odd_pictures.tiff(RGB.astype("f4"), compression=8)[:-700],
    "TIFF cut": odd_pictures.tiff(RGB.astype("u2"), compression=8, rows=20, tags={279: (4, b"\x99\0\0\0")}),
    "PPM": b"P6\n9 9\n255\n" + bytes(100),
    "plain PPM": b"P3\n2 2\n255\n" + b"1 2 3 4 5 6 7 8 9 10 11",
    "PGM of words": b"P2\n2 2\n255\n1 2 x 4 ",
    "PAM": b"P7\nWIDTH 9\nHEIGHT 9\nDEPTH 3\nMAXVAL 255\nENDHDR\n" + bytes(50),
    "PFM": b"PF\n9 9\n-1.0\n" + bytes(50),
    "JPEG 2000": odd_pictures.encoded(RGB, "JPEG2000")[:300],
    "BMP of fields": odd_pictures._fields(32, (0xFF, 0xFF00, 0xFF0000, 0), False).data[:500],
    "GIF": odd_pictures.encoded(RGB, "GIF")[:-60],
    "DDS": odd_pictures.encoded(RGB, "DDS")[:-60],
    "QOI": odd_pictures.encoded(RGB, "QOI")[:200],
    "JPEG XL": media.encode(Image.fromarray(RGB), "JXL")[:90],
    "SGI": odd_pictures.encoded(RGB, "SGI")[:-60],
    "TGA": odd_pictures.encoded(RGB, "TGA", compression="tga_rle")[:400] + bytes(8)
    + b"TRUEVISION-XFILE.\0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code"),
    [(name, "decode_unsupported") for name in UNSUPPORTED]
    + [(name, "decode_corrupt") for name in DAMAGED],
)
def test_what_is_not_read_is_not_called_damaged(name: str, code: str) -> None:
    data = (UNSUPPORTED if code == "decode_unsupported" else DAMAGED)[name]
    with warnings.catch_warnings(), pytest.raises(MediaError) as caught:
        warnings.simplefilter("ignore")
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
        try:
            found += detect_format(rng.bytes(300)).name == "TGA"
        except MediaError:
            pass
    assert not found


def test_open_pictures_of_floats_are_scaled_as_files_are() -> None:
    values = RGB[..., 1].astype(np.float32)
    decoded = read_open_picture(Image.fromarray(values))
    from_file = read_image(odd_pictures.tiff(values[..., None]))
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


# --- colour profiles


def _profile(space: str = "display-p3") -> bytes:
    """A matrix profile: sRGB's with the colorants of another space, which ICC files hold as XYZ."""
    colorants = {
        "display-p3": ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)),
        "adobe": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
        "nearly": ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)),
    }[space]  # fmt: skip
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for number in range(count):
        at = 132 + 12 * number
        name, offset = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "big")
        if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            values = colorants[(b"rXYZ", b"gXYZ", b"bXYZ").index(name)]
            for index, value in enumerate(values):
                fixed = int(round(value * 65536)) & 0xFFFFFFFF
                data[offset + 8 + 4 * index : offset + 12 + 4 * index] = fixed.to_bytes(4, "big")
    return bytes(data)


def _red(form: str, profile: bytes, mode: str = "RGB", **options: object) -> tuple[np.ndarray, str]:
    picture = Image.new("RGB", (32, 32), (200, 60, 60)).convert(mode)
    decoded = read_image(media.encode(picture, form, icc_profile=profile, **options))
    return decoded.pixels[:, 16, 16].numpy().astype(int), " | ".join(decoded.notes)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_a_wide_profile_is_applied(form: str) -> None:
    colour, notes = _red(form, _profile())
    assert "converted from the colour profile" in notes
    # Display P3 (200, 60, 60) is sRGB (217, 38, 52) by the matrices of the two spaces.
    assert np.abs(colour - (217, 38, 52)).max() <= 6
    plain, notes = _red(form, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert np.abs(plain - (200, 60, 60)).max() <= 3
    assert "profile" not in notes


def test_other_profiles() -> None:
    assert "converted" in _red("PNG", _profile("adobe"))[1]
    assert _red("PNG", _profile("nearly"))[0].tolist() == [200, 60, 60]
    for broken in (b"broken", _profile()[:200], bytes(5000)):
        colour, notes = _red("PNG", broken)
        assert colour.tolist() == [200, 60, 60]
        assert "damaged colour profile" in notes
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert "not used: it is of" in _red("PNG", lab)[1]
    colour, notes = _red("JPEG", _profile(), "CMYK")
    assert "the picture of CMYK" in notes


def test_a_profile_and_transparency() -> None:
    picture = Image.new("RGBA", (4, 4), (200, 60, 60, 255))
    picture.putpixel((0, 0), (200, 60, 60, 0))
    decoded = read_image(media.encode(picture, "PNG", icc_profile=_profile()))
    assert decoded.pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert np.abs(decoded.pixels[:, 2, 2].numpy().astype(int) - (217, 38, 52)).max() <= 4


def test_open_pictures_have_profiles_too() -> None:
    data = media.encode(Image.new("RGB", (8, 8), (200, 60, 60)), "PNG", icc_profile=_profile())
    opened = read_open_picture(Image.open(io.BytesIO(data)))
    assert np.array_equal(opened.pixels, read_image(data).pixels)
    assert opened.notes == read_image(data).notes
