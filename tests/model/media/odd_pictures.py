"""Draws odd picture files that are whole: formats, depths, layouts, and metadata that is broken.

Each comes with the pixels that a person would see.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests import media

HEIGHT, WIDTH = 20, 28
RGB = media.draw(HEIGHT, WIDTH, seed=5)
GREY = RGB[..., 1].copy()
ALPHA = np.where(np.arange(WIDTH) < 9, 0, 255)[None].repeat(HEIGHT, 0).astype(np.uint8)


@dataclass(frozen=True)
class Odd:
    """A file. seen: uint8 [H, W] or [H, W, 3]. note: words of one of the receipt's notes.

    levels: by which a pixel may differ.
    """

    data: bytes
    seen: np.ndarray
    note: str | None = None
    levels: int = 0


def over_white(colour: np.ndarray, alpha: np.ndarray = ALPHA) -> np.ndarray:
    colour = colour if colour.ndim == 3 else np.repeat(colour[..., None], 3, 2)
    return np.where(alpha[..., None] == 0, 255, colour).astype(np.uint8)


# --- TIFF


def tiff(
    values: np.ndarray,
    order: str = "<",
    photometric: int | None = None,
    bits: int | None = None,
    planar: bool = False,
    tile: int = 0,
    compression: int = 1,
    predictor: int = 1,
    extra: tuple[int, ...] = (),
    tags: dict[int, tuple[int, bytes]] | None = None,
    big: bool = False,
    rows: int = 7,
) -> bytes:
    """values: [H, W, C]. tags: further ones, as (type, bytes in the file's order)."""
    height, width, samples = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = bits or values.dtype.itemsize * 8
    if photometric is None:
        photometric = 2 if samples >= 3 else 1

    def encoded(part: np.ndarray) -> bytes:
        if bits % 8:
            flat = part.reshape(part.shape[0], -1).astype(">u2").view(np.uint8)
            spread = np.unpackbits(flat.reshape(part.shape[0], -1, 2), axis=2)[..., 16 - bits :]
            body = np.packbits(spread.reshape(part.shape[0], -1), axis=1).tobytes()
        elif predictor == 2:
            numbers = part.view(f"u{part.dtype.itemsize}")
            body = np.diff(numbers, axis=1, prepend=numbers[:, :1] * 0).astype(
                f"{order}u{part.dtype.itemsize}"
            ).tobytes()  # fmt: skip
        elif predictor == 3:
            whole = part.astype(part.dtype.newbyteorder(">")).view(np.uint8)
            size = part.dtype.itemsize
            planes = whole.reshape(part.shape[0], -1, size).swapaxes(1, 2)
            planes = planes.reshape(part.shape[0], -1, part.shape[2])
            body = np.diff(planes, axis=1, prepend=planes[:, :1] * 0).tobytes()
        else:
            body = part.astype(part.dtype.newbyteorder(order)).tobytes()
        return zlib.compress(body) if compression == 8 else body

    planes = [values[..., [index]] for index in range(samples)] if planar else [values]
    parts = []
    for plane in planes:
        if tile:
            down, across = -(-height // tile), -(-width // tile)
            padding = ((0, down * tile - height), (0, across * tile - width), (0, 0))
            padded = np.pad(plane, padding)
            parts += [
                encoded(np.ascontiguousarray(padded[y : y + tile, x : x + tile]))
                for y in range(0, down * tile, tile)
                for x in range(0, across * tile, tile)
            ]
        else:
            parts += [encoded(plane[top : top + rows]) for top in range(0, height, rows)]
    start = 16 if big else 8
    offsets = np.cumsum([start, *map(len, parts)])[:-1]

    def pack(form: str, *numbers: int) -> bytes:
        return struct.pack(order + form * len(numbers), *numbers)

    names = (324, 325) if tile else (273, 279)
    entries = {
        256: (4, pack("I", width)), 257: (4, pack("I", height)),
        258: (3, pack("H", *[bits] * samples)), 259: (3, pack("H", compression)),
        262: (3, pack("H", photometric)), 277: (3, pack("H", samples)),
        284: (3, pack("H", 2 if planar else 1)), 317: (3, pack("H", predictor)),
        339: (3, pack("H", *[kind] * samples)),
        names[0]: (4, pack("I", *offsets.tolist())), names[1]: (4, pack("I", *map(len, parts))),
    }  # fmt: skip
    if tile:
        entries |= {322: (3, pack("H", tile)), 323: (3, pack("H", tile))}
    else:
        entries[278] = (3, pack("H", rows))
    if extra:
        entries[338] = (3, pack("H", *extra))
    entries |= tags or {}
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 5: 8, 11: 4, 12: 8}
    field, entry, count_bytes = (8, 20, 8) if big else (4, 12, 2)
    body = b"".join(parts)
    base = start + len(body)
    tail_at = base + count_bytes + entry * len(entries) + field
    directory, tail = pack("Q" if big else "H", len(entries)), b""
    for tag, (form, content) in sorted(entries.items()):
        count = len(content) // sizes.get(form, 1)
        directory += pack("H", tag, form) + pack("Q" if big else "I", count)
        if len(content) <= field:
            directory += content.ljust(field, b"\0")
        else:
            directory += pack("Q" if big else "I", tail_at + len(tail))
            tail += content
    magic = b"II" if order == "<" else b"MM"
    head = (
        struct.pack(f"{order}HHHQ", 43, 8, 0, base) if big else struct.pack(f"{order}HI", 42, base)
    )
    return magic + head + body + directory + bytes(field) + tail


def _tiffs() -> dict[str, Odd]:
    odd: dict[str, Odd] = {}
    scaled = RGB.astype(np.float64) / 255
    low, high = RGB.min() / 255, RGB.max() / 255
    stretched = np.rint((scaled - low) / (high - low) * 255)
    for order in "<>":
        for dtype in ("u2", "u4", "i2", "i4", "f2", "f4", "f8"):
            most = {"u2": 65535, "u4": 2**32 - 1, "i2": 32767, "i4": 2**31 - 1}.get(dtype, 1)
            values = (scaled * most).astype(dtype)
            if dtype == "i2":  # values of 15 bits
                seen, levels = values.astype("u2") >> 8, 0
            elif dtype == "u2":
                seen, levels = values >> 8, 0
            else:
                seen, levels = stretched, 1
            for samples in (1, 3, 5):
                bands = np.concatenate([values, values[..., :2]], axis=2)[..., :samples]
                expected = seen if samples > 1 else seen[..., 0]
                if samples == 1 and seen is stretched:
                    one = scaled[..., 0]
                    expected = np.rint((one - one.min()) / (one.max() - one.min()) * 255)
                photometric = 1 if samples == 5 else None
                data = tiff(bands, order, photometric)
                odd[f"tiff {order}{dtype} {samples}"] = Odd(data, expected, "scaled", levels)
    wide = (RGB.astype(np.uint16) << 8) | RGB
    floats = (scaled * 3 - 1).astype("f4")
    for name, options in {
        "planar": {"planar": True}, "tiled": {"tile": 16}, "planar tiled": {"planar": True, "tile": 16},
        "big": {"big": True}, "one strip": {"rows": 20},
    }.items():  # fmt: skip
        for compression in (1, 8):
            for order in "<>":
                data = tiff(wide, order, compression=compression, **options)
                odd[f"tiff u2 {name} {compression} {order}"] = Odd(data, RGB)
                predictor = 2 if compression == 8 else 1
                data = tiff(wide, order, compression=compression, predictor=predictor, **options)
                odd[f"tiff u2 {name} {compression} {order} differences"] = Odd(data, RGB)
                predictor = 3 if compression == 8 else 1
                data = tiff(floats, order, compression=compression, predictor=predictor, **options)
                odd[f"tiff f4 {name} {compression} {order}"] = Odd(data, stretched, "range", 1)
    for bits in (9, 10, 12, 14):
        values = RGB.astype(np.uint16) << (bits - 8)
        data = tiff(values, bits=bits)
        odd[f"tiff {bits} bits RGB"] = Odd(data, RGB, f"{bits} significant bits")
        data = tiff(values[..., 1:2], ">", bits=bits, tile=16)
        odd[f"tiff {bits} bits grey tiled"] = Odd(data, GREY, f"{bits} significant bits")
        data = tiff(values[..., 1:2])
        odd[f"tiff {bits} bits in 16"] = Odd(data, _of_bits(values[..., 1]), "significant bits")
        data = tiff(values[..., 1:2], photometric=0)
        seen = 255 - _of_bits(values[..., 1])
        odd[f"tiff {bits} bits in 16, 0 is white"] = Odd(data, seen, "significant bits")
    declared = {281: (3, struct.pack("<H", 4095))}
    dark = GREY[..., None].astype(np.uint16)
    odd["tiff 12 bits declared"] = Odd(tiff(dark, tags=declared), GREY >> 4, "as declared")
    declared = {340: (11, struct.pack("<f", 0)), 341: (11, struct.pack("<f", 255))}
    data = tiff(RGB[..., 1:2].astype("f4"), tags=declared)
    odd["tiff float range declared"] = Odd(data, GREY, "as declared")
    holes = RGB[..., 1:2].astype("f4")
    holes[0, :3, 0] = np.nan, np.inf, -np.inf
    seen = np.rint((holes[..., 0] - GREY.min()) / (float(GREY.max()) - GREY.min()) * 255)
    seen[0, :3] = 0, 255, 0
    odd["tiff with NaN and infinity"] = Odd(tiff(holes), seen, "its own", 1)
    empty = RGB[..., 1:2].astype("f4")
    seen = np.rint((empty[..., 0] - GREY.min()) / (float(GREY.max()) - GREY.min()) * 255)
    empty[0, :9], seen[0, :9] = -9999, 0
    data = tiff(empty, tags={42113: (2, b"-9999\0")})
    odd["tiff with empty pixels"] = Odd(data, seen, "its own", 4)
    constant = np.full((HEIGHT, WIDTH, 1), 7.5, "f4")
    odd["tiff float of one value"] = Odd(tiff(constant), GREY * 0, "range 7.5 to 7.5")
    odd["tiff float of nothing but NaN"] = Odd(tiff(constant * np.nan), GREY * 0, "range 0 to 0")
    for size in ("u1", "u2"):
        scale = 1 if size == "u1" else 257
        rgba = np.dstack([RGB, ALPHA]).astype(size) * scale
        data = tiff(rgba, extra=(2,))
        odd[f"tiff alpha {size}"] = Odd(data, over_white(RGB), "transparency")
        premultiplied = np.dstack([np.where(ALPHA[..., None] == 0, 0, RGB), ALPHA])
        data = tiff(premultiplied.astype(size) * scale, extra=(1,))
        odd[f"tiff premultiplied alpha {size}"] = Odd(data, over_white(RGB), "transparency", 1)
        data = tiff(rgba, extra=(0,))
        odd[f"tiff with a band of no meaning {size}"] = Odd(data, RGB)
        data = tiff(np.dstack([GREY, ALPHA]).astype(size) * scale, extra=(2,))
        odd[f"tiff grey alpha {size}"] = Odd(data, over_white(GREY), "transparency")
    many = np.dstack([RGB, GREY, GREY, GREY, GREY])
    odd["tiff of seven bands"] = Odd(tiff(many, photometric=1), RGB, "first three of 7")
    ink = (255 - RGB.astype(np.uint16)) * 257
    cmyk = np.dstack([ink, ink[..., 0] * 0])
    odd["tiff CMYK of 16 bits"] = Odd(tiff(cmyk, photometric=5), RGB, None, 2)
    for value, photometric in ((0, 0), (1, 1)):
        bits = (GREY > 127).astype(np.uint16)[..., None]
        data = tiff(bits if value else 1 - bits, bits=1, photometric=photometric)
        odd[f"tiff of 1 bit, {photometric}"] = Odd(data, (GREY > 127) * np.uint8(255))
    broken = {
        270: (2, b"x" * 3000), 305: (9999, b"y" * 40), 33432: (4, b""), 34665: (4, b"\xff" * 4),
        700: (1, b"<broken" * 99), 33723: (4, b"\xff\xff\xff\xff" * 9), 36867: (12, b"1"),
        330: (4, struct.pack("<I", 8)),
    }  # fmt: skip
    for tag, value in broken.items():
        odd[f"tiff with a broken tag {tag}"] = Odd(tiff(RGB, tags={tag: value}), RGB)
    profile = {34675: (7, b"no profile" * 9)}
    odd["tiff with a broken profile"] = Odd(tiff(RGB, tags=profile), RGB, "damaged colour profile")
    turned = {274: (3, struct.pack("<H", 3))}
    odd["tiff turned"] = Odd(tiff(wide, tags=turned), RGB[::-1, ::-1], "turned upright")
    return odd


def _of_bits(values: np.ndarray) -> np.ndarray:
    most = int(values.max())
    bits = next(bits for bits in (8, 10, 12, 14, 16) if most < 1 << bits)
    return values >> (bits - 8)


# --- PNG


def chunk(kind: bytes, data: bytes, crc: int = 0) -> bytes:
    """crc: is added to the right checksum."""
    checksum = (zlib.crc32(kind + data) + crc) & 0xFFFFFFFF
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(values: np.ndarray, before: bytes = b"", behind: bytes = b"", pieces: int = 1) -> bytes:
    """values: uint8 or uint16 [H, W, C]. before, behind: chunks before and after the pixels."""
    height, width, samples = values.shape
    kinds = {1: 0, 2: 4, 3: 2, 4: 6}
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, values.itemsize * 8, kinds[samples], 0, 0, 0)
    step = -(-len(packed) // pieces)
    pixels = b"".join(chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before
    return start + pixels + behind + chunk(b"IEND", b"")


def _pngs() -> dict[str, Odd]:
    odd: dict[str, Odd] = {}
    shapes = {1: GREY[..., None], 2: np.dstack([GREY, ALPHA]), 3: RGB, 4: np.dstack([RGB, ALPHA])}
    for samples, values in shapes.items():
        colour = values[..., 0] if samples < 3 else RGB
        expected = colour if samples % 2 else over_white(colour)
        for bits in (8, 10, 12, 14, 16):
            wide = values.astype(np.uint16) << (bits - 8)
            wide[0, 0, : samples - (samples + 1) % 2] = (1 << bits) - 1
            seen = expected.copy()
            seen[0, 0] = 255
            note = None if bits == 16 and samples > 1 else "scaled to 8 bits"
            odd[f"png {samples} samples, {bits} bits in 16"] = Odd(png(wide), seen, note)
    dark = GREY[..., None].astype(np.uint16)
    left = GREY[..., None].astype(np.uint16) << 8
    odd["png sBIT 12, lowest bits"] = Odd(png(dark, chunk(b"sBIT", b"\x0c")), GREY >> 4, "declared")
    odd["png sBIT 16, dark"] = Odd(png(dark, chunk(b"sBIT", b"\x10")), GREY >> 8)
    odd["png sBIT 10, highest bits"] = Odd(png(left, chunk(b"sBIT", b"\x0a")), GREY)
    colour = RGB.astype(np.uint16)
    data = png(colour, chunk(b"sBIT", b"\x0a\x0a\x0a"))
    odd["png sBIT 10 10 10, lowest bits"] = Odd(data, RGB >> 2, "declared")
    bomb = zlib.compress(bytes(20_000_000))
    for name, kind, body in (
        ("ztxt bomb", b"zTXt", b"k\0\0" + bomb), ("itxt bomb", b"iTXt", b"k\0\1\0\0\0" + bomb),
        ("iccp bomb", b"iCCP", b"k\0\0" + bomb), ("ztxt method", b"zTXt", b"k\0\7x"),
        ("ztxt damaged", b"zTXt", b"k\0\0xxxx"), ("itxt short", b"iTXt", b"k"),
        ("text without end", b"tEXt", b"k"), ("exif garbage", b"eXIf", b"MM\0*broken"),
        ("exif empty", b"eXIf", b""), ("iccp damaged", b"iCCP", b"k\0\0xxxx"),
        ("iccp short", b"iCCP", b"k"), ("gamma short", b"gAMA", b"\1"), ("chrm short", b"cHRM", b""),
        ("srgb empty", b"sRGB", b""), ("phys short", b"pHYs", b"\1\2"), ("time", b"tIME", b"x"),
        ("unknown", b"abCd", b"x" * 99), ("sbit empty", b"sBIT", b""), ("actl short", b"acTL", b"\0"),
        ("fctl short", b"fcTL", b"\0"), ("background", b"bKGD", b""), ("trns long", b"tRNS", b"x" * 900),
    ):  # fmt: skip
        note = "damaged colour profile" if kind == b"iCCP" else None
        odd[f"png {name}"] = Odd(png(RGB, chunk(kind, body)), RGB, note)
        odd[f"png {name}, checksum"] = Odd(png(RGB, chunk(kind, body, 1)), RGB, note)
        odd[f"png {name}, behind"] = Odd(png(RGB, b"", chunk(kind, body, 1)), RGB, note)
    odd["png in many pieces"] = Odd(png(RGB, pieces=10_000), RGB)
    odd["png with an end of garbage"] = Odd(png(RGB) + b"garbage" * 999, RGB)
    odd["png without its end"] = Odd(png(RGB)[:-12], RGB)
    turn = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0"
    data = png(RGB, chunk(b"eXIf", turn, 1))
    odd["png turned"] = Odd(data, RGB[::-1, ::-1], "turned upright")
    return odd


# --- PNM


def _pnms() -> dict[str, Odd]:
    odd: dict[str, Odd] = {}
    size = f"{WIDTH} {HEIGHT}"
    bits = GREY > 127
    black = np.packbits(~bits, axis=1).tobytes()
    seen = bits * np.uint8(255)
    digits = "".join("01"[int(not bit)] for bit in bits.ravel())
    odd["pbm"] = Odd(f"P4\n# a comment\n{size}\n".encode() + black, seen)
    odd["pbm of letters"] = Odd(f"P1 {size}\n{digits}\n".encode(), seen)
    odd["pbm of letters with blanks"] = Odd(f"P1\n{size}\n{' '.join(digits)}# end".encode(), seen)
    for maxval in (1, 15, 100, 255, 1000, 1023, 4095, 65535):
        for samples, kind in ((1, 5), (3, 6)):
            values = np.rint(RGB[..., :samples] / 255 * maxval).astype(int)
            expected = np.rint(values / maxval * 255)
            expected = expected[..., 0] if samples == 1 else expected
            form = "u1" if maxval < 256 else ">u2"
            note = None if maxval == 255 else "declared" if maxval < 65535 else "scaled"
            data = f"P{kind}\n{size}\n{maxval}\n".encode() + values.astype(form).tobytes()
            odd[f"pnm P{kind} {maxval}"] = Odd(data, expected, note, 1)
            text = " ".join(map(str, values.ravel()))
            data = f"P{kind - 3} # {maxval}\n{size} {maxval}\n{text}".encode()
            odd[f"pnm P{kind - 3} {maxval}"] = Odd(data, expected, note, 1)
    for order, scale in (("<", "-1.0"), (">", "1.0")):
        values = (RGB / 255 * 4).astype(f"{order}f4")[::-1]
        low, high = int(RGB.min()), int(RGB.max())
        expected = np.rint((RGB.astype(float) - low) / (high - low) * 255)
        data = f"PF\n{size}\n{scale}\n".encode() + values.tobytes()
        odd[f"pfm {order}"] = Odd(data, expected, "its own", 1)
        one = (GREY.astype(float) - GREY.min()) / (float(GREY.max()) - GREY.min())
        data = f"Pf\n{size}\n{scale}\n".encode() + values[..., 1].tobytes()
        odd[f"pfm grey {order}"] = Odd(data, np.rint(one * 255), "its own", 1)
    planes = {1: GREY, 2: np.dstack([GREY, ALPHA]), 3: RGB, 4: np.dstack([RGB, ALPHA])}
    for depth, values in planes.items():
        colour = GREY if depth < 3 else RGB
        expected = colour if depth % 2 else over_white(colour)
        for maxval, form in ((255, "u1"), (65535, ">u2")):
            head = f"P7\nWIDTH {WIDTH}\nHEIGHT {HEIGHT}\nDEPTH {depth}\nMAXVAL {maxval}\nENDHDR\n"
            body = (values.astype(np.uint32) * (maxval // 255)).astype(form).tobytes()
            odd[f"pam {depth} {maxval}"] = Odd(head.encode() + body, expected)
    return odd


# --- formats that Pillow or its plugins write


def encoded(pixels: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
    picture = Image.fromarray(pixels)
    return media.encode(picture.convert(mode) if mode else picture, form, **options)


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
            odd[f"BMP of fields {masks} {upside_down}"] = _fields(bits_value, masks, upside_down)
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


def _fields(bits: int, masks: tuple[int, ...], upside_down: bool) -> Odd:
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
        ("broken Exif", 0xE1, b"Exif\0\0MM\0*\0\0"), ("endless Exif", 0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        ("broken profile", 0xE2, b"ICC_PROFILE\0"), ("profile part", 0xE2, b"ICC_PROFILE\0\1\2xx"),
        ("broken Photoshop", 0xED, b"Photoshop 3.0\x008BIM\4\4\xff"), ("short Adobe", 0xEE, b"Adobe"),
        ("broken MPF", 0xE2, b"MPF\0II*\0\xff\xff\xff\xff"), ("comment", 0xFE, b"\xff\xd8" * 99),
        ("broken XMP", 0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"), ("FlashPix", 0xE2, b"FPXR\0"),
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
    "TIFF": _tiffs, "PNG": _pngs, "PNM": _pnms, "written by Pillow": _written,
    "HEIF, AVIF, JPEG XL": _modern, "metadata": _metadata,
}  # fmt: skip
