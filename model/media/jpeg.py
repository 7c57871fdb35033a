"""Decodes intact JPEG files to RGB pixels, faster than Pillow and bit for bit equal to it.

It also says why a file is of a kind that is not read, and takes out metadata that nobody uses.

simplejpeg and Pillow both call libjpeg-turbo with its accurate settings. A file on which simplejpeg
so much as warns is left to Pillow, whose verdict on damaged files counts. The EXIF orientation is
not applied.
"""

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import simplejpeg

from mediamill.model.media.formats.exif import exif_orientation

# Any marker but a stuffed 0xFF and the restart markers, which occur in the data of a scan.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_DAMAGE = re.compile(r"Corrupt JPEG data: (.{,80})")  # libjpeg's warning
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9  # ITU-T T.81 table B.1
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_KINDS = {0xC3: "is lossless", 0xF7: "is of the kind JPEG-LS"}
_KINDS |= dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "is hierarchical")
_KINDS |= dict.fromkeys((0xC9, 0xCA, 0xCB), "is coded arithmetically")
_APP1, _APP14, _METADATA = 0xE1, 0xEE, frozenset({*range(0xE0, 0xF0), 0xFE})
_MAX_SEGMENTS = 100_000
_MAX_MARKERS = 1_000_000


def decode_jpeg(
    data: bytes, height: int, width: int
) -> tuple[npt.NDArray[np.uint8] | None, str | None]:
    """Returns uint8 [height, width, 3] of a grey or RGB picture as stored, None to use Pillow; and
    what the decoder says of damaged data, which Pillow conceals.

    height, width: from another reading of the header, already checked against the limits.
    """
    try:
        header = simplejpeg.decode_jpeg_header(data)
        # simplejpeg allocates memory by its own reading of the header, so that is checked.
        if header[:2] != (height, width) or header[2] not in ("YCbCr", "Gray", "RGB"):
            return None, None
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except (ValueError, RuntimeError, KeyError, MemoryError) as error:
        # Damage, or a picture that is not supported.
        damage = _DAMAGE.match(str(error))
        return None, damage[1] if damage else None
    return pixels, None


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
    for _ in range(_MAX_MARKERS):
        match = _MARKER.search(data, offset)
        marker = _END_OF_IMAGE if match is None else data[match.start() + 1]
        if match is None or marker == _END_OF_IMAGE:
            return count
        count += marker == _START_OF_SCAN
        offset = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return upper_bound


def has_too_many_segments(data: bytes) -> bool:
    """Whether there are more segments before the pixels than any writer makes."""
    return sum(1 for _ in _segments(data)) >= _MAX_SEGMENTS


def refusal(data: bytes) -> str | None:
    """Returns why decoders refuse a file that need not be damaged, in words; None if they do not.

    The words follow "the JPEG picture".
    """
    for marker, start, end in _segments(data):
        if marker in _FRAMES and end - start >= 10:
            precision, colours = data[start + 4], data[start + 9]
            if marker in _KINDS:
                return _KINDS[marker]
            if precision != 8:
                return f"has {precision} bits for each colour"
            return None if colours in (1, 3, 4) else f"has {colours} colours"
    return None


def orientation(data: bytes) -> int:
    """Returns the EXIF orientation, as far as it can be read; 1 = upright."""
    for marker, start, end in _segments(data):
        if marker == _APP1 and data[start + 4 : start + 10] == b"Exif\0\0":
            return exif_orientation(data[start + 4 : end])
    return 1


def without_metadata(data: bytes) -> bytes:
    """Returns the file without comments and application segments, but for Adobe's on colours."""
    parts, copied = [data[:2]], 2
    for marker, start, end in _segments(data):
        is_colours = marker == _APP14 and data[start + 4 : start + 9] == b"Adobe"
        is_colours = is_colours and end - start >= 16
        if marker in _METADATA and not is_colours:
            parts.append(data[copied:start])
            copied = end
    return b"".join([*parts, data[copied:]])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of the segments up to the first scan."""
    offset = 2
    for _ in range(_MAX_SEGMENTS):
        match = _MARKER.search(data, offset)
        if match is None or data[match.start() + 1] in (_START_OF_SCAN, _END_OF_IMAGE):
            return
        end = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
        yield data[match.start() + 1], match.start(), end
        offset = end
