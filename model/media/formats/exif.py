"""Reads the orientation of an EXIF block, and nothing else of it."""

import struct


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation that an EXIF block declares in its first directory; 1 = none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return 1
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for offset in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, offset)
        if tag == 0x0112:
            form = "H" if kind == 3 else "I"
            (value,) = struct.unpack_from(f"{order}{form}", exif, offset + 8)
            return value if 1 <= value <= 8 else 1
    return 1
