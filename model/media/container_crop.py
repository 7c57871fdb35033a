"""Reads which part of the stored frames a container shows: `clap` of MP4, PixelCrop of Matroska.

FFmpeg's decoders crop by the codec's own headers only.
"""

import struct
from collections.abc import Iterator
from fractions import Fraction

from mediamill.model.media.media_file import FileHandle, MediaFile
from mediamill.model.media.mp4_boxes import boxes

Crop = tuple[int, int, int, int]  # pixels at (left, top, right, bottom)

NO_CROP: Crop = (0, 0, 0, 0)
_SAMPLE_ENTRY = 86  # bytes of a video sample entry before its boxes
_MAX_TRACKS = 1 << 20  # bytes of a Matroska header that are read
_SEGMENT, _TRACKS, _ENTRY, _VIDEO = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"
_SIDES = (b"\x54\xcc", b"\x54\xbb", b"\x54\xdd", b"\x54\xaa")  # left, top, right, bottom


def container_crop(media_file: MediaFile, name: str, number: int, size: tuple[int, int]) -> Crop:
    """Returns what is cropped from the frames of a video track; nothing if the file is unclear.

    name: of the format. number: of the track, among those of video. size: stored (height, width).
    """
    with media_file.open() as handle:
        if name == "mov":
            crops = list(_clean_apertures(handle, media_file.size, size))
        elif name == "matroska":
            crops = list(_pixel_crops(handle.read_at(0, _MAX_TRACKS)))
        else:
            return NO_CROP
    return crops[number] if number < len(crops) else NO_CROP


def _clean_apertures(handle: FileHandle, total: int, size: tuple[int, int]) -> Iterator[Crop]:
    is_video = False
    for name, body in boxes(handle, total):
        if name == b"hdlr":
            is_video = handle.read_at(body + 8, 4) in (b"vide", b"pict", b"auxv")
        elif name == b"stsd" and is_video:
            entry = handle.read_at(body + 8, 4096)
            entry = entry[_SAMPLE_ENTRY : int.from_bytes(entry[:4], "big")]
            yield _clean_aperture(entry, size)


def _clean_aperture(entry: bytes, size: tuple[int, int]) -> Crop:
    """The part around the middle that a clap box names (ISO/IEC 14496-12, 12.1.4)."""
    offset = 0
    while offset + 8 <= len(entry):
        length, name = (
            int.from_bytes(entry[offset : offset + 4], "big"),
            entry[offset + 4 : offset + 8],
        )
        if name == b"clap" and offset + 40 <= len(entry):
            numbers = struct.unpack(">IIIIiIiI", entry[offset + 8 : offset + 40])
            if not all(numbers[1::2]):
                return NO_CROP
            width, height, right, down = (
                Fraction(numbers[i], numbers[i + 1]) for i in range(0, 8, 2)
            )
            left = int((size[1] - width) / 2 + right)
            top = int((size[0] - height) / 2 + down)
            return left, top, size[1] - left - int(width), size[0] - top - int(height)
        if length < 8:
            break
        offset += length
    return NO_CROP


def _pixel_crops(head: bytes) -> Iterator[Crop]:
    for segment in _elements(head, _SEGMENT):
        for tracks in _elements(segment, _TRACKS):
            for entry in _elements(tracks, _ENTRY):
                for video in _elements(entry, _VIDEO):
                    left, top, right, bottom = (
                        int.from_bytes(next(_elements(video, side), b"")[:8], "big")
                        for side in _SIDES
                    )
                    yield left, top, right, bottom


def _elements(data: bytes, name: bytes) -> Iterator[bytes]:
    """Yields the contents of the elements of one name (RFC 8794), as far as `data` goes."""
    offset = 0
    while offset + 2 <= len(data):
        start = offset + max(1, 9 - data[offset].bit_length())
        if start >= len(data):
            return
        body = start + max(1, 9 - data[start].bit_length())
        unknown = (1 << 7 * (body - start)) - 1
        size = int.from_bytes(data[start:body], "big") & unknown
        end = len(data) if size == unknown else body + size
        if data[offset:start] == name:
            yield data[body:end]
        offset = end
