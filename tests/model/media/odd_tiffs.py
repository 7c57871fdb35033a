"""Draws TIFF files of many depths, layouts and tags."""

import struct
import zlib

import numpy as np

from tests.model.media.odd_base import ALPHA, GREY, HEIGHT, RGB, WIDTH, Odd, over_white


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


def tiffs() -> dict[str, Odd]:
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
        "planar": {"planar": True}, "tiled": {"tile": 16}, "planar tiled": {"planar": True,
        "tile": 16},
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
