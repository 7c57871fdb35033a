"""Decodes JPEG XL pictures with libjxl, whose wrapper decodes as soon as it opens a file.

So the size is read from the codestream's header first, and only the codestream is given to it.
"""

from typing import Any

import numpy as np
import pillow_jxl

from mediamill.model.errors import MediaError

_CODESTREAM = b"\xff\x0a"
_MAX_BOXES = 100_000
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_SIZE_BITS = (9, 13, 18, 30)
# Ratios of width to height, ISO/IEC 18181-1 section A.3.
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def codestream(data: bytes) -> bytes:
    """Returns the codestream of a JPEG XL file, without its container's other boxes.

    Raises MediaError decode_corrupt if there is none.
    """
    if data.startswith(_CODESTREAM):
        return data
    parts: list[bytes] = []
    offset = 0
    for _ in range(_MAX_BOXES):
        if offset + 8 > len(data):
            break
        size, kind = int.from_bytes(data[offset : offset + 4], "big"), data[offset + 4 : offset + 8]
        start = offset + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        elif size == 0:
            size = len(data) - offset
        if size < start - offset:
            break
        if kind == b"jxlc":
            parts.append(data[start : offset + size])
        elif kind == b"jxlp":
            parts.append(data[start + 4 : offset + size])
        offset += size
    codestream = b"".join(parts)
    if not codestream.startswith(_CODESTREAM):
        raise MediaError("decode_corrupt", "the JPEG XL picture is damaged: it has no codestream")
    return codestream


def stored_size(stream: bytes) -> tuple[int, int]:
    """Returns (width, height) from the header of a codestream; (0, 0) if it is cut off."""
    bits, position = int.from_bytes(stream[2:18], "little"), 0

    def read(count: int) -> int:
        nonlocal position
        value = bits >> position & (1 << count) - 1
        position += count
        return value

    def side(is_small: int) -> int:
        return (read(5) + 1) * 8 if is_small else read(_SIZE_BITS[read(2)]) + 1

    if len(stream) < 12:
        return 0, 0
    is_small = read(1)
    height = side(is_small)
    ratio = read(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height * across // down, height
    return side(is_small), height


def decode(stream: bytes) -> tuple[Any, str, bytes | None]:
    """Returns the values [H, W, C], the colours as Pillow's mode (L, LA, RGB, RGBA), the profile.

    The values are uint8, uint16, float16 or float32. The size has to be checked before.
    Raises MediaError decode_corrupt and decode_unsupported.
    """
    try:
        _, info, pixels, profile, _ = pillow_jxl.Decoder(num_threads=0)(stream)
    except BaseException as error:
        # The library reports any damage alike, and a form that it lacks as a panic of Rust's.
        if type(error).__name__ == "PanicException":
            raise MediaError(
                "decode_unsupported", f"the JPEG XL picture is of a kind that is not read: {error}"
            ) from None
        if isinstance(error, RuntimeError):
            raise MediaError("decode_corrupt", "the JPEG XL picture is damaged") from error
        raise
    form = str(info.mode)
    channels = int(info.num_channels)
    total = len(pixels) // (info.width * info.height)  # bytes of one pixel
    if form in _CHANNELS:
        channels = _CHANNELS[form]
    size = total // channels
    kinds: dict[int, Any] = {1: np.uint8, 2: np.float16 if form.startswith("F") else np.uint16}
    values = np.frombuffer(pixels, kinds.get(size, np.float32))
    colours = {count: name for name, count in _CHANNELS.items()}[channels]
    return values.reshape(info.height, info.width, channels), colours, profile or None
