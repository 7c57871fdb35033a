"""Finds the chunks of a media file: boxes, chunks, segments, elements, directory entries.

The size, the name and the fields of a chunk decide what a reader allocates, so mutating them is
most effective.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_CONTAINER_BOXES = {
    *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"dinf", b"moof", b"traf"),
    *(b"mvex", b"meta", b"iprp", b"ipco"),
}
_MASTERS = {  # EBML elements that hold others
    *(b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66"),
    *(b"\x16\x54\xae\x6b", b"\xae", b"\xe0", b"\x1f\x43\xb6\x75", b"\xa0", b"\x1c\x53\xbb\x6b"),
    *(b"\xbb", b"\xb7", b"\x55\xb0", b"\x12\x54\xc3\x67"),
}


@dataclass(frozen=True)
class Chunk:
    """data[start:end], whose size is stored in data[size_offset : size_offset + size_bytes].

    body: offset of its fields. big_endian: byte order of its numbers.
    """

    start: int
    end: int
    body: int
    size_offset: int
    size_bytes: int
    big_endian: bool


def chunks_of(data: bytes) -> list[Chunk]:
    """Returns all chunks, outer ones before inner ones; none of an unknown format."""
    if data.startswith(b"\x89PNG"):
        return list(_png(data))
    if data.startswith(b"RIFF"):
        return list(_riff(data, 0, len(data)))
    if data.startswith(b"\xff\xd8"):
        return list(_jpeg(data))
    if data[:4] in (b"II*\0", b"II+\0"):
        return list(_tiff(data))
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return list(_ebml(data, 0, len(data)))
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return list(_boxes(data, 0, len(data)))
    if data.startswith(b"FLV"):
        return list(_flv(data))
    if data[:1] == b"\x47":
        return [Chunk(at, at + 188, at + 1, at + 1, 2, True) for at in range(0, len(data), 188)]
    return []


def with_valid_checksums(data: bytes) -> bytes:
    """Returns a PNG with valid checksums, so that readers parse its mutated chunks."""
    if not data.startswith(b"\x89PNG"):
        return data
    repaired = bytearray(data)
    for chunk in _png(data):
        body = data[chunk.start + 4 : chunk.end - 4]
        repaired[chunk.end - 4 : chunk.end] = zlib.crc32(body).to_bytes(4, "big")
    return bytes(repaired)


def _png(data: bytes) -> Iterator[Chunk]:
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        yield Chunk(at, end, at + 8, at, 4, True)
        at = end


def _riff(data: bytes, at: int, end: int) -> Iterator[Chunk]:
    while at + 8 <= end:
        stop = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        yield Chunk(at, min(stop, end), at + 8, at + 4, 4, False)
        if data[at : at + 4] in (b"RIFF", b"LIST"):
            yield from _riff(data, at + 12, min(stop, end))
        elif data[at : at + 4] == b"ANMF":
            yield from _riff(data, at + 24, min(stop, end))
        at = stop + stop % 2


def _jpeg(data: bytes) -> Iterator[Chunk]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield Chunk(at, end, at + 4, at + 2, 2, True)
        if data[at + 1] == 0xDA:
            next_markers = data.find(b"\xff\xc4", end), data.find(b"\xff\xda", end)
            end = min((offset for offset in next_markers if offset >= 0), default=len(data))
        at = end


def _tiff(data: bytes) -> Iterator[Chunk]:
    if data[2] != 42:
        return
    at = int.from_bytes(data[4:8], "little")
    while at and at + 2 <= len(data):
        count = int.from_bytes(data[at : at + 2], "little")
        yield Chunk(at, at + 2 + 12 * count, at + 2, at, 2, False)
        for entry in range(at + 2, min(at + 2 + 12 * count, len(data) - 12), 12):
            yield Chunk(entry, entry + 12, entry + 2, entry + 4, 4, False)
        at = int.from_bytes(data[at + 2 + 12 * count : at + 6 + 12 * count], "little")


def _boxes(data: bytes, at: int, end: int) -> Iterator[Chunk]:
    while at + 8 <= end:
        size = int.from_bytes(data[at : at + 4], "big") or end - at
        if size < 8:
            return
        yield Chunk(at, min(at + size, end), at + 8, at, 4, True)
        name = data[at + 4 : at + 8]
        if name in _CONTAINER_BOXES:
            yield from _boxes(data, at + (12 if name == b"meta" else 8), min(at + size, end))
        elif name == b"stsd":
            yield from _boxes(data, at + 16, min(at + size, end))
        at += size


def _ebml(data: bytes, at: int, end: int) -> Iterator[Chunk]:
    while at + 2 <= end:
        name_bytes = 9 - data[at].bit_length()
        size_offset = at + name_bytes
        if name_bytes > 4 or size_offset >= end or not data[size_offset]:
            return
        size_bytes = 9 - data[size_offset].bit_length()
        body = size_offset + size_bytes
        size = int.from_bytes(data[size_offset:body], "big") & ((1 << 7 * size_bytes) - 1)
        stop = end if size == (1 << 7 * size_bytes) - 1 else min(body + size, end)
        yield Chunk(at, stop, body, size_offset, size_bytes, True)
        if data[at:size_offset] in _MASTERS:
            yield from _ebml(data, body, stop)
        at = stop


def _flv(data: bytes) -> Iterator[Chunk]:
    at = 13
    while at + 15 <= len(data):
        end = at + 15 + int.from_bytes(data[at + 1 : at + 4], "big")
        yield Chunk(at, end, at + 4, at + 1, 3, True)
        at = end
