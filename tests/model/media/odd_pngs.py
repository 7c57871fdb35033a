"""Draws PNG and PNM files of many depths, with metadata that are broken."""

import struct
import zlib

import numpy as np

from tests.model.media.odd_base import ALPHA, GREY, HEIGHT, RGB, WIDTH, Odd, over_white


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


def pngs() -> dict[str, Odd]:
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
        ("iccp short", b"iCCP", b"k"), ("gamma short", b"gAMA", b"\1"),
        ("chrm short", b"cHRM", b""),
        ("srgb empty", b"sRGB", b""), ("phys short", b"pHYs", b"\1\2"), ("time", b"tIME", b"x"),
        ("unknown", b"abCd", b"x" * 99), ("sbit empty", b"sBIT", b""),
        ("actl short", b"acTL", b"\0"),
        ("fctl short", b"fcTL", b"\0"), ("background", b"bKGD", b""),
        ("trns long", b"tRNS", b"x" * 900),
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
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  26\n" + turn.hex().encode())
    odd["png turned by a text"] = Odd(png(RGB, chunk(b"zTXt", text)), RGB[::-1, ::-1], "upright")
    text = b"Raw profile type exif\0\0" + bomb
    odd["png exif text bomb"] = Odd(png(RGB, chunk(b"zTXt", text)), RGB)
    return odd


def pnms() -> dict[str, Odd]:
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
