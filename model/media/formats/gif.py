"""Cuts the first frame out of a GIF file, so that comments and later frames cost nothing."""

_TRAILER, _EXTENSION, _IMAGE, _GRAPHIC_CONTROL = 0x3B, 0x21, 0x2C, 0xF9
_MAX_BLOCKS = 4_000_000  # that are skipped: a block may hold a single byte


def first_frame(data: bytes) -> tuple[bytes, bool]:
    """Returns a GIF file of the first frame, and whether others follow.

    A file without a whole first frame is returned as far as it goes: decoding it fails.
    """
    offset = 13 + _colour_table(data, 10)
    parts, frames, blocks = [data[:offset]], 0, 0
    while offset < len(data) and blocks < _MAX_BLOCKS:
        start, kind = offset, data[offset]
        if kind == _EXTENSION and offset + 1 < len(data):
            is_wanted = data[offset + 1] == _GRAPHIC_CONTROL and not frames
            offset += 2
        elif kind == _IMAGE and frames:
            frames += 1
            break
        elif kind == _IMAGE:
            is_wanted, frames = True, 1
            offset += 11 + _colour_table(data, offset + 9)
        else:
            break
        while offset < len(data) and (length := data[offset]) and blocks < _MAX_BLOCKS:
            offset += 1 + length
            blocks += 1
        offset += 1
        blocks += 1
        if is_wanted:
            parts.append(data[start:offset])
    return b"".join([*parts, bytes((_TRAILER,))]), frames > 1


def _colour_table(data: bytes, offset: int) -> int:
    """Returns the bytes of the colour table that the flags at an offset announce."""
    flags = data[offset] if offset < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
