"""Decodes intact JPEG files to RGB pixels, faster than Pillow and bit for bit equal to it.

simplejpeg and Pillow both call libjpeg-turbo with its accurate settings. A file on which simplejpeg
so much as warns is left to Pillow, whose verdict on damaged files counts. The EXIF orientation is
not applied.
"""

import re

import numpy as np
import numpy.typing as npt
import simplejpeg

# Any marker but a stuffed 0xFF and the restart markers, which occur in the data of a scan.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9  # ITU-T T.81 table B.1


def decode_jpeg(data: bytes, height: int, width: int) -> npt.NDArray[np.uint8] | None:
    """Returns uint8 [height, width, 3] of a grey or RGB picture as stored; None to use Pillow.

    height, width: from another reading of the header, already checked against the limits.
    """
    try:
        header = simplejpeg.decode_jpeg_header(data)
        # simplejpeg allocates memory by its own reading of the header, so that is checked.
        if header[:2] != (height, width) or header[2] not in ("YCbCr", "Gray", "RGB"):
            return None
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except (ValueError, RuntimeError, KeyError, MemoryError):  # damage and unsupported pictures
        return None
    return pixels


def scan_count(data: bytes) -> int:
    """Returns the number of scans, each of which makes a decoder go over the whole picture.

    A few bytes can declare many scans. In a damaged file the number may be too high, because
    markers of an embedded picture count as well.
    """
    # Segment data may look like the marker, so this is an upper bound; it is quick to compute.
    upper_bound = data.count(bytes((0xFF, _START_OF_SCAN)))
    if upper_bound <= 2:
        return upper_bound
    count, offset = 0, 2
    while match := _MARKER.search(data, offset):
        marker = data[match.start() + 1]
        if marker == _END_OF_IMAGE:
            break
        count += marker == _START_OF_SCAN
        offset = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return count
