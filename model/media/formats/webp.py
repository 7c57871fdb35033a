"""Reads the size of a WebP picture."""


def webp_size(data: bytes) -> tuple[int, int]:
    """Returns (width, height) from the header of the first chunk; (0, 0) if it is cut off.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    chunk_type, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if chunk_type == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk_type == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
    return width & 0x3FFF, height & 0x3FFF
