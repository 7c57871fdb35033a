"""Notices damage that decoders conceal, by what containers keep beside the data.

Matroska files that FFmpeg and mkvmerge wrote have a checksum of each cluster, Ogg files one of each
page; a transport stream consists of whole packets. Players show such files all the same, so these
are notes of the receipt and no errors.
"""

import zlib
from collections.abc import Iterator

from mediamill.model.media.media_file import FileHandle, MediaFile

_MAX_PARTS = 10_000_000  # of one file that are read
_CHUNK_BYTES = 1 << 20
_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_CRC_32 = b"\xbf\x84"  # the element's name, and the size of its value
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def damage_notes(media_file: MediaFile, name: str) -> tuple[str, ...]:
    """Returns what shows that a video file is damaged, in words; nothing for most sound files.

    Reads the whole file if it has checksums. name: of the format, from `detect_format`.
    """
    with media_file.open() as handle:
        if name == "matroska":
            return _note("cluster", _matroska_checks(handle, media_file.size))
        if name == "ogg":
            return _note("page", _ogg_checks(handle))
        if name == "mpegts" and not _has_whole_packets(handle, media_file.size):
            return ("the file ends within a packet: it may be cut off",)
    return ()


def _note(part: str, checks: Iterator[bool]) -> tuple[str, ...]:
    numbers = [number for number, is_right in enumerate(checks, 1) if not is_right][:1_000_000]
    if not numbers:
        return ()
    return (f"damage: wrong checksum of {len(numbers)} {part}s, first of {part} {numbers[0]}",)


def _matroska_checks(handle: FileHandle, total: int) -> Iterator[bool]:
    """Yields whether the checksum of each cluster that has one is right (RFC 8794, 11.3.1)."""
    offset = 0
    for _ in range(_MAX_PARTS):
        header = handle.read_at(offset, 12 + 6)
        length = max(1, 9 - header[0].bit_length()) if header else 0  # of the name
        width = max(1, 9 - header[length].bit_length()) if len(header) >= 12 else 0
        if not width:
            return
        size = int.from_bytes(header[length : length + width], "big") & (1 << 7 * width) - 1
        body = offset + length + width
        if header[:length] == _SEGMENT:
            offset = body
            continue
        if body + size > total:
            return  # of a size that is not known, or cut off
        checksum = handle.read_at(body, 6) if header[:length] == _CLUSTER else b""
        if checksum[:2] == _CRC_32 and len(checksum) == 6 <= size:
            yield _crc_32(handle, body + 6, body + size) == int.from_bytes(checksum[2:], "little")
        offset = body + size


def _crc_32(handle: FileHandle, start: int, end: int) -> int:
    checksum = 0
    for offset in range(start, end, _CHUNK_BYTES):
        checksum = zlib.crc32(handle.read_at(offset, min(_CHUNK_BYTES, end - offset)), checksum)
    return checksum


def _ogg_checks(handle: FileHandle) -> Iterator[bool]:
    """Yields whether the checksum of each page is right (RFC 3533, section 6)."""
    offset = 0
    for _ in range(_MAX_PARTS):
        header = handle.read_at(offset, 27)
        if header[:4] != b"OggS" or len(header) < 27:
            return
        sizes = handle.read_at(offset + 27, header[26])
        page = handle.read_at(offset, 27 + header[26] + sum(sizes))
        yield _ogg_crc(page[:22] + bytes(4) + page[26:]) == int.from_bytes(page[22:26], "little")
        offset += 27 + header[26] + sum(sizes)


def _ogg_crc(data: bytes) -> int:
    """The checksum of zlib begins with the lowest bit of a byte, that of Ogg with the highest."""
    register = zlib.crc32(data.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{register:032b}"[::-1], 2)


def _has_whole_packets(handle: FileHandle, total: int) -> bool:
    """Whether the end is that of a packet, in files that begin with one."""
    begins = handle.read_at(0, 5)
    sizes = [188, 204] if begins[:1] == b"G" else [192] if begins[4:] == b"G" else []
    return not sizes or any(total % size == 0 for size in sizes)
