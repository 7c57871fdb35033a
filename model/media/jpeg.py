"""Turns the bytes of a sound JPEG file into RGB pixels, faster than Pillow and equal to it.

Both call libjpeg-turbo with its accurate settings. What it only warns of is left undecided here:
Pillow's verdict on a damaged file is the one that counts. Orientation is not known here.
"""

import re

import numpy as np
import numpy.typing as npt
import simplejpeg

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # that ends the data of a scan
_SCAN, _END = 0xDA, 0xD9

# ValueError: damage, or a picture that it does not take; the others: what it cannot make.
_UNDECIDED = (ValueError, RuntimeError, KeyError, MemoryError)


def decode_jpeg(data: bytes, height: int, width: int) -> npt.NDArray[np.uint8] | None:
    """uint8 [height, width, 3] of a picture in grey or RGB, as stored; None: let Pillow decide.

    height, width: as another reader of the same header found them and has held against its limits.
    """
    try:
        found = simplejpeg.decode_jpeg_header(data)
        # Memory is taken by the decoder's own reading of the header: it must be the checked one.
        if found[:2] != (height, width) or found[2] not in ("YCbCr", "Gray", "RGB"):
            return None
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except _UNDECIDED:
        return None
    return pixels


def scan_count(data: bytes) -> int:
    """How often a decoder has to go over the picture: a few bytes may ask for it again and again.

    At most: markers in what is embedded in a damaged file may count as well.
    """
    # What lies in a scan or in other segments may look like the marker: first the quick answer.
    upper = data.count(bytes((0xFF, _SCAN)))
    if upper <= 2:
        return upper
    count, at = 0, 2
    while found := _MARKER.search(data, at):
        marker = data[found.start() + 1]
        if marker == _END:
            break
        count += marker == _SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return count
