"""Draws odd picture files that are whole, each with the pixels that a person would see."""

import io
import struct

import numpy as np
from PIL import Image

from tests import media
from tests.model.media.odd_base import ALPHA, GREY, HEIGHT, RGB, WIDTH, Odd, encoded, over_white
from tests.model.media.odd_pngs import pngs, pnms
from tests.model.media.odd_tiffs import tiffs

_MASK = np.packbits(np.pad(ALPHA == 0, ((0, 0), (0, -WIDTH % 32))), axis=1)[::-1].tobytes()


def _icon(count: int, mask: bytes) -> bytes:
    """An ICO of bitmaps of 24 bits, of which all but the first are small."""
    pixels = encoded(RGB, "DIB")
    first = pixels[:8] + struct.pack("<i", 2 * HEIGHT) + pixels[12:] + mask
    small = struct.pack("<IiiHHIIiiII", 40, 2, 4, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(2 * 8 + 2 * 4)
    bodies, offset, entries = [first] + [small] * (count - 1), 6 + 16 * count, b""
    for body in bodies:
        side = (WIDTH, HEIGHT) if body is first else (2, 2)
        entries += struct.pack("<BBBBHHII", *side, 0, 0, 1, 24, len(body), offset)
        offset += len(body)
    return b"\0\0\1\0" + struct.pack("<H", count) + entries + b"".join(bodies)


def _written() -> dict[str, Odd]:
    odd: dict[str, Odd] = {}
    bits = (GREY > 127) * np.uint8(255)
    rgba, seen = np.dstack([RGB, ALPHA]), over_white(RGB)
    for form in ("BMP", "DIB", "DDS", "PCX", "SGI", "TGA", "QOI", "PNG"):
        odd[f"{form} RGB"] = Odd(encoded(RGB, form), RGB)
    for form in ("BMP", "DIB", "DDS", "PCX", "SGI", "TGA", "PNG", "JPEG2000"):
        odd[f"{form} grey"] = Odd(encoded(GREY, form), GREY)
    for form in ("DDS", "SGI", "TGA", "QOI", "PNG", "ICO", "JPEG2000"):
        sizes = {"sizes": [(WIDTH, HEIGHT)]} if form == "ICO" else {}
        odd[f"{form} RGBA"] = Odd(encoded(rgba, form, **sizes), seen)
    for form in ("BMP", "PCX", "TGA", "XBM", "MSP"):
        picture = Image.fromarray(bits).convert("1")
        odd[f"{form} of 1 bit"] = Odd(media.encode(picture, form), bits)
    odd["TGA packed"] = Odd(encoded(RGB, "TGA", compression="tga_rle"), RGB)
    odd["TGA packed RGBA"] = Odd(encoded(rgba, "TGA", compression="tga_rle"), seen)
    data = encoded(RGB, "TGA")
    odd["TGA without its footer"] = Odd(data[:-26], RGB)
    odd["TGA with another end"] = Odd(data[:-26] + bytes(500), RGB)
    unset = np.dstack([RGB, RGB[..., 0] * 0])
    odd["TGA with an unset alpha"] = Odd(encoded(unset, "TGA"), RGB, "alpha channel not used")
    for name, options in {
        "jp2": {},
        "j2k": {"no_jp2": True},
        "jp2 tiled": {"tile_size": (16, 16)},
    }.items():
        odd[name] = Odd(encoded(RGB, "JPEG2000", **options), RGB)
    wide = Image.fromarray(GREY.astype(np.uint16) << 8)
    odd["jp2 of 16 bits"] = Odd(media.encode(wide, "JPEG2000"), GREY, "16-bit")
    sizes = {"sizes": [(WIDTH, HEIGHT)]}
    odd["ICO of bitmaps"] = Odd(encoded(rgba, "ICO", bitmap_format="bmp", **sizes), seen)
    cursor = bytearray(encoded(rgba, "ICO", bitmap_format="bmp", **sizes))
    cursor[2], cursor[10:14] = 2, b"\3\0\4\0"
    odd["CUR"] = Odd(bytes(cursor), seen)
    odd["ICO of two bitmaps"] = Odd(_icon(2, _MASK), seen)
    odd["ICO with bytes after the mask"] = Odd(_icon(1, _MASK + bytes(40)), seen)
    odd["ICO of a bitmap without a mask"] = Odd(_icon(1, b""), RGB)
    small = Image.fromarray(RGB).resize((16, 16))
    icons = media.encode(small, "ICNS")
    odd["ICNS"] = Odd(icons, np.asarray(Image.open(io.BytesIO(icons)).convert("RGB")))
    spider = GREY.astype(np.float32)
    stretched = np.rint((spider - spider.min()) / (spider.max() - spider.min()) * 255)
    odd["SPIDER"] = Odd(encoded(spider, "SPIDER"), stretched, "float grey", 1)
    picture = Image.fromarray(RGB)
    several = media.encode(picture, "MPO", save_all=True, append_images=[picture], quality=95)
    first = np.asarray(Image.open(io.BytesIO(several)))
    odd["MPO"] = Odd(several, first)
    for bits_value, masks in ((16, (0xF800, 0x7E0, 0x1F, 0)), (32, (0xFF, 0xFF00, 0xFF0000, 0)),
                              (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
                              (16, (0xF00, 0xF0, 0xF, 0xF000))):  # fmt: skip
        for upside_down in (False, True):
            odd[f"BMP of fields {masks} {upside_down}"] = bit_fields(bits_value, masks, upside_down)
    xpm = b'/* XPM */\nstatic char *x[] = {\n"2 1 2 1",\n"a c #FF0000",\n"b c #0000FF",\n"ab"\n};\n'
    odd["XPM"] = Odd(xpm, np.array([[[255, 0, 0], [0, 0, 255]]]))
    sun = struct.pack(">8I", 0x59A66A95, WIDTH, HEIGHT, 24, RGB.size, 1, 0, 0)
    odd["SUN"] = Odd(sun + RGB[..., ::-1].tobytes(), RGB)
    card = (
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    2",
    )
    card += (f"NAXIS1  = {WIDTH:20d}", f"NAXIS2  = {HEIGHT:20d}", "END")
    fits = "".join(line.ljust(80) for line in card).ljust(2880).encode()
    odd["FITS"] = Odd(fits + GREY[::-1].tobytes(), GREY)
    gif = encoded(RGB, "GIF")
    head = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)
    comment = b"\x21\xfe" + (b"\xff" + b"c" * 255) * 40_000 + b"\0"
    shown = np.asarray(Image.open(io.BytesIO(gif)).convert("RGB"))
    odd["GIF with a long comment"] = Odd(gif[:head] + comment + gif[head:], shown)
    odd["GIF with an end of garbage"] = Odd(gif + b"\x2cgarbage", shown)
    return odd


def bit_fields(bits: int, masks: tuple[int, ...], upside_down: bool) -> Odd:
    values = np.zeros((HEIGHT, WIDTH), np.uint32)
    seen = []
    for mask, plane in zip(masks, np.dstack([RGB, ALPHA]).transpose(2, 0, 1), strict=True):
        if mask:
            shift = (mask & -mask).bit_length() - 1
            most = mask >> shift
            field = plane.astype(np.uint32) * (most + 1) // 256
            values |= field << shift
            seen.append(field * 255 // most)
    height = -HEIGHT if upside_down else HEIGHT
    rows = values.astype(f"<u{bits // 8}")[:: 1 if upside_down else -1]
    header = struct.pack("<IiiHHIIiiII4I", 56, WIDTH, height, 1, bits, 3, 0, 0, 0, 0, 0, *masks)
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(header)) + header + rows.tobytes()
    colour = np.dstack(seen[:3]).astype(np.uint8)
    return Odd(data, over_white(colour) if masks[3] else colour, None, 1)


def _modern() -> dict[str, Odd]:
    import pillow_heif
    import pillow_jxl
    from pillow_heif import HeifFile

    odd: dict[str, Odd] = {}
    smooth = np.asarray(Image.fromarray(RGB).resize((64, 48), Image.Resampling.BICUBIC))
    grey, alpha = smooth[..., 1].copy(), np.full((48, 64), 255, np.uint8)
    alpha[:, :32] = 0
    for name, pixels, seen in (
        ("RGB", smooth, smooth), ("L", grey, grey),
        ("RGBA", np.dstack([smooth, alpha]), over_white(smooth, alpha)),
    ):  # fmt: skip
        file = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=-1, chroma=444)
        odd[f"HEIC {name}"] = Odd(file.getvalue(), seen, None, 4)
    data = odd["HEIC RGB"].data
    odd["HEIC of the major brand mif1"] = Odd(data[:8] + b"mif1" + data[12:], smooth, None, 4)
    odd["HEIC of an unknown major brand"] = Odd(data[:8] + b"abcd" + data[12:], smooth, None, 4)
    ten = pillow_heif.from_bytes(
        mode="RGB;16", size=(64, 48), data=(smooth.astype(np.uint16) * 257).tobytes()
    )
    assert isinstance(ten, HeifFile)
    file = io.BytesIO()
    ten.save(file, quality=-1, chroma=444)
    odd["HEIC of 10 bits"] = Odd(file.getvalue(), smooth, None, 5)
    avif = media.encode(Image.fromarray(smooth), "AVIF", quality=100, subsampling="4:4:4")
    odd["AVIF of the major brand mif1"] = Odd(avif[:8] + b"mif1" + avif[12:], smooth, None, 4)
    for name, pixels, seen in (
        ("RGB", smooth, smooth), ("L", grey, grey),
        ("RGBA", np.dstack([smooth, alpha]), over_white(smooth, alpha)),
        ("LA", np.dstack([grey, alpha]), over_white(grey, alpha)),
        # These are written with a profile of linear light.
        ("of 16 bits", grey.astype(np.uint16) * 257, _as_srgb(grey)),
        ("of floats", (grey / 255).astype(np.float32), _as_srgb(grey)),
    ):  # fmt: skip
        for container in (False, True):
            data = media.encode(
                Image.fromarray(pixels), "JXL", lossless=True, use_container=container
            )
            note = "converted from the colour profile" if name.startswith("of") else None
            odd[f"JXL {name} {container}"] = Odd(data, seen, note, 1 if note is None else 14)
    jpeg = media.encode(Image.fromarray(smooth), "JPEG", quality=95)
    encoder = pillow_jxl.Encoder(mode="RGB", lossless=True)
    data = bytes(encoder(jpeg, 64, 48, jpeg_encode=True))
    odd["JXL of a JPEG"] = Odd(data, np.asarray(Image.open(io.BytesIO(jpeg))), None, 6)
    return odd


def _as_srgb(linear: np.ndarray) -> np.ndarray:
    light = linear / 255
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(curve * 255)


def _metadata() -> dict[str, Odd]:
    odd: dict[str, Odd] = {}
    jpeg = encoded(RGB, "JPEG", quality=95)
    seen = np.asarray(Image.open(io.BytesIO(jpeg)))
    for name, marker, body in (
        ("short JFIF", 0xE0, b"JFIF"), ("short Exif", 0xE1, b"Exif\0\0"),
        ("broken Exif", 0xE1, b"Exif\0\0MM\0*\0\0"),
        ("endless Exif", 0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        ("broken profile", 0xE2, b"ICC_PROFILE\0"), ("profile part", 0xE2, b"ICC_PROFILE\0\1\2xx"),
        ("broken Photoshop", 0xED, b"Photoshop 3.0\x008BIM\4\4\xff"),
        ("short Adobe", 0xEE, b"Adobe"),
        ("broken MPF", 0xE2, b"MPF\0II*\0\xff\xff\xff\xff"), ("comment", 0xFE, b"\xff\xd8" * 99),
        ("broken XMP", 0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"),
        ("FlashPix", 0xE2, b"FPXR\0"),
    ):  # fmt: skip
        segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
        odd[f"JPEG {name}"] = Odd(jpeg[:2] + segment + jpeg[2:], seen)
        twice = jpeg[:2] + segment * 2 + jpeg[2:]
        odd[f"JPEG {name} twice"] = Odd(twice, seen)
    odd["JPEG with an end of garbage"] = Odd(jpeg + b"\xff\xd8garbage" * 99, seen)
    webp = encoded(RGB, "WEBP", lossless=True, exif=b"Exif\0\0MM\0*broken", icc_profile=b"broken")
    odd["WebP broken metadata"] = Odd(webp, RGB, "damaged colour profile")
    webp = encoded(RGB, "WEBP", lossless=True, xmp=b"<broken" * 99)
    odd["WebP broken XMP"] = Odd(webp, RGB)
    return odd


GROUPS = {
    "TIFF": tiffs, "PNG": pngs, "PNM": pnms, "written by Pillow": _written,
    "HEIF, AVIF, JPEG XL": _modern, "metadata": _metadata,
}  # fmt: skip
