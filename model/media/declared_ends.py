"""Finds what is missing at the end of a file by what the container itself declares.

A sound file must never be called cut off, and many sound files declare nothing, or something wrong:
recordings of live streams above all. So each rule asks for two signs where one may be wrong.
Every function takes an open file and its size, and returns what is missing in words, or None.
"""

import struct
from dataclasses import dataclass

from mediamill.model.media.media_file import FileHandle

_MAX_PARTS = 10_000_000  # of one file that are read
_FLV_TAGS = (8, 9, 18)  # sound, video, data
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MAX_HEADER = 1 << 20


def flv_truncation(handle: FileHandle, total: int) -> str | None:
    """Two of three signs: `filesize` and `duration` of onMetaData are beyond what is there, and
    the last tag goes on beyond the end. Servers copy one of them from another file, or write 0.
    """
    header = handle.read_at(0, 9)
    offset = int.from_bytes(header[5:9], "big") + 4
    declared_s = declared_bytes = last_s = 0.0
    ends_within_tag = False
    for _ in range(_MAX_PARTS):
        tag = handle.read_at(offset, 11)
        if len(tag) < 11:
            ends_within_tag = bool(tag)
            break
        if tag[0] & 31 not in _FLV_TAGS:
            return None  # not a tag: the demuxer decides what it is
        size = int.from_bytes(tag[1:4], "big")
        last_s = max(last_s, (tag[7] << 24 | int.from_bytes(tag[4:7], "big")) / 1000)
        if tag[0] & 31 == 18 and not declared_s and not declared_bytes:
            data = handle.read_at(offset + 11, min(size, _MAX_HEADER))
            declared_s, declared_bytes = (
                _amf_number(data, b"duration"),
                _amf_number(data, b"filesize"),
            )
        offset += 11 + size + 4
        if offset - 4 > total:
            ends_within_tag = True
            break
    ends_early = declared_s > last_s + max(1.0, 0.05 * declared_s)
    if (declared_bytes > total) + ends_early + ends_within_tag < 2:
        return None
    declared = [f"{declared_s:g} s"] * ends_early + [f"{declared_bytes:.0f} bytes"] * (
        declared_bytes > total
    )
    return f"it declares {' and '.join(declared)}, but ends after {last_s:.3f} s and {total} bytes"


def _amf_number(data: bytes, name: bytes) -> float:
    """Returns a number of an AMF0 object, 0 if it has none of this name."""
    start = data.find(len(name).to_bytes(2, "big") + name + b"\0")
    value = data[start + len(name) + 3 : start + len(name) + 11]
    number = struct.unpack(">d", value)[0] if start >= 0 and len(value) == 8 else 0.0
    return float(number) if 0 < number < 1e15 else 0.0


def asf_truncation(handle: FileHandle, total: int) -> str | None:
    """Two signs: the file size in the header, and the end of the data object; no live recording."""
    header = handle.read_at(0, 24)
    size = int.from_bytes(header[16:24], "little")
    if header[:16] != _ASF_HEADER or size > _MAX_HEADER:
        return None
    properties = handle.read_at(0, size)
    start = properties.find(_ASF_FILE_PROPERTIES)
    if start < 0 or len(properties) < start + 92:
        return None
    declared = int.from_bytes(properties[start + 40 : start + 48], "little")
    is_live = properties[start + 88] & 1
    data = handle.read_at(size, 24)
    end = size + int.from_bytes(data[16:24], "little")
    if is_live or data[:16] != _ASF_DATA or not (end > total and declared > total):
        return None
    return f"its data should end at byte {end}, but the file ends at byte {total}"


@dataclass
class _OggStream:
    ended: bool = False
    in_packet: bool = False


def ogg_truncation(handle: FileHandle, total: int) -> str | None:
    """The last page, or the last packet of a stream, goes on beyond the end.

    A missing page with the mark of the end is no sign: many sound files have none.
    """
    streams: dict[bytes, _OggStream] = {}
    offset = 0
    for _ in range(_MAX_PARTS):
        header = handle.read_at(offset, 27 + 255)
        if header[:4] != b"OggS" or len(header) < 27:
            break
        segments = header[27 : 27 + header[26]]
        end = offset + 27 + header[26] + sum(segments)
        if end > total or len(segments) < header[26]:
            return f"its last page should end at byte {end}, but the file ends at byte {total}"
        stream = streams.setdefault(header[14:18], _OggStream())
        stream.ended = bool(header[5] & 4)
        stream.in_packet = segments[-1] == 255 if segments else stream.in_packet
        offset = end
    if offset != total:
        return None  # not a page: the demuxer decides what it is
    if any(stream.in_packet and not stream.ended for stream in streams.values()):
        return f"its last packet goes on behind byte {total}, where the file ends"
    return None


def avi_index_truncation(handle: FileHandle, total: int) -> str | None:
    """A part of the index (OpenDML) lies beyond the end."""
    head = handle.read_at(0, _MAX_HEADER)
    head = head[: max(0, head.find(b"movi"))]
    start = head.find(b"indx")
    while start >= 0:
        longs, kind, entries = struct.unpack("<HxBI", head[start + 8 : start + 16].ljust(8, b"\0"))
        table = head[start + 32 : start + 32 + 16 * min(entries, 4096)]
        if longs == 4 and kind == 0:
            for place, size, _ in struct.iter_unpack("<QII", table[: len(table) // 16 * 16]):
                if place + size > total and place:
                    return (
                        f"its index goes to byte {place + size}, but the file ends at byte {total}"
                    )
        start = head.find(b"indx", start + 4)
    return None


def ivf_truncation(handle: FileHandle, total: int) -> str | None:
    """The last frame goes on beyond the end."""
    offset = int.from_bytes(handle.read_at(6, 2), "little")
    for _ in range(_MAX_PARTS):
        header = handle.read_at(offset, 12)
        end = offset + 12 + int.from_bytes(header[:4], "little")
        if not header:
            return None
        if len(header) < 12 or end > total:
            return f"its last frame should end at byte {end}, but the file ends at byte {total}"
        offset = end
    return None


def webp_truncation(handle: FileHandle, total: int) -> str | None:
    """The RIFF chunk ends beyond the file."""
    end = 8 + int.from_bytes(handle.read_at(4, 4), "little")
    return f"it should end at byte {end}, but ends at byte {total}" if end > total else None


def png_truncation(handle: FileHandle, total: int) -> str | None:
    """A chunk ends beyond the file, or the last chunk (IEND) is missing."""
    offset = 8
    for _ in range(_MAX_PARTS):
        header = handle.read_at(offset, 8)
        if header[4:] == b"IEND":
            return None
        if len(header) < 8:
            return f"its last chunk is missing at byte {offset}; the file ends at byte {total}"
        offset += 12 + int.from_bytes(header[:4], "big")
    return None


def goes_on(handle: FileHandle, name: str, total: int) -> bool:
    """Whether another file follows the first one in an AVI or Matroska file, or may follow.

    What the first one's header declares is then not true of the whole. name: of the format.
    """
    if name == "avi":
        end = 8 + int.from_bytes(handle.read_at(4, 4), "little")
        end += end % 2
        return end + 12 <= total and handle.read_at(end, 12)[8:] != b"AVIX"
    if name != "matroska":
        return False
    header = handle.read_at(0, 12)
    start = 4 + _vint(header[4:])[0] + _vint(header[4:])[1]
    segment = handle.read_at(start, 12)
    length, size = _vint(segment[4:])
    is_unknown = size == (1 << 7 * length) - 1
    return not is_unknown and start + 4 + length + size + 12 <= total


def _vint(data: bytes) -> tuple[int, int]:
    """Returns the length of an EBML variable-length integer in bytes, and its value (RFC 8794)."""
    length = max(1, 9 - data[0].bit_length()) if data else 1
    return length, int.from_bytes(data[:length], "big") & (1 << 7 * length) - 1
