"""Finds the largest picture in the files of icons and mouse cursors."""

import struct

from mediamill.model.errors import MediaError

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")
_MAX_BLOCKS = 1000

_ENTRY = struct.Struct("<BBBBHHII")
_BITMAP = struct.Struct("<IiiHHIIiiI")


def largest_icon(data: bytes, label: str) -> tuple[bytes, bool, bool]:
    """Returns the largest picture of an ICO or CUR file, with the most colours.

    The result is a PNG file, or an ICO file of this picture alone; whether it is a PNG file; and
    whether there were others. Raises MediaError decode_corrupt.
    """
    count = int.from_bytes(data[4:6], "little")
    best: tuple[int, int, int, int] | None = None
    for number in range(count):
        if 22 + 16 * number > len(data):
            break
        width, height, _, _, _, depth, size, offset = _ENTRY.unpack_from(data, 6 + 16 * number)
        if not size or offset + min(size, 40) > len(data):
            continue
        # The header of the picture itself counts: a cursor has its hot spot in place of the depth.
        body = data[offset : offset + 40]
        if body.startswith(_PNG):
            area, depth = (
                int.from_bytes(body[16:20], "big") * int.from_bytes(body[20:24], "big"),
                32,
            )
        else:
            area, depth = (width or 256) * (height or 256), int.from_bytes(body[14:16], "little")
        best = max(best or (0, 0, 0, 0), (area, depth, -number, 6 + 16 * number))
    if best is None or not best[3]:
        raise MediaError("decode_corrupt", f"the {label} is damaged: it has no picture")
    width, height, colours, zero, _, _, size, offset = _ENTRY.unpack_from(data, best[3])
    body = data[offset : offset + size]
    if body.startswith(_PNG):
        return body, True, count > 1
    body = _bitmap(data[offset:], size)
    entry = _ENTRY.pack(width, height, colours, zero, 1, best[1], len(body), 22)
    return b"\0\0\1\0\1\0" + entry + body, False, count > 1


def _bitmap(data: bytes, size: int) -> bytes:
    """Returns a bitmap and the mask after it, and no byte more: Pillow counts from their end.

    data: from the bitmap on. size: by the file's list, which may be wrong. A bitmap without a mask
    gets one that hides nothing.
    """
    header, width, height, _, bits, _, _, _, _, colours = _BITMAP.unpack_from(data.ljust(40, b"\0"))
    height = abs(height) // 2
    palette = 4 * (colours or 1 << bits) if bits <= 8 else 0
    pixels_end = header + palette + (abs(width) * bits + 31) // 32 * 4 * height
    mask_end = pixels_end + (abs(width) + 31) // 32 * 4 * height
    body = data[:size] if pixels_end <= size else data
    return body[:mask_end].ljust(mask_end, b"\0") if pixels_end <= len(body) else body


def largest_apple_icon(data: bytes) -> tuple[bytes, str] | None:
    """Returns the largest PNG or JPEG 2000 file in Apple's icon, and its format by Pillow's name.

    None if it has none, as in old files.
    """
    best, offset = b"", 8
    best_area = 0
    for _ in range(_MAX_BLOCKS):
        if offset + 8 > len(data):
            break
        length = int.from_bytes(data[offset + 4 : offset + 8], "big")
        body = data[offset + 8 : offset + 64]
        area = 0
        if body.startswith(_PNG):
            area = int.from_bytes(body[16:20], "big") * int.from_bytes(body[20:24], "big")
        elif body.startswith(_JPEG2000):
            area = max(1, length)  # icons of one file are alike: more bytes, more pixels
        if area > best_area:
            best, best_area = data[offset + 8 : offset + length], area
        offset += max(8, length)
    if not best:
        return None
    return best, "PNG" if best.startswith(_PNG) else "JPEG2000"
