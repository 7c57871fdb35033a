"""Finds the parts that a media file consists of: boxes, chunks, segments, elements, entries.

A part is where a lie does most: its size, its name and its fields decide what a reader allocates.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_BOXES_OF_BOXES = {
    *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"dinf", b"moof", b"traf"),
    *(b"mvex", b"meta", b"iprp", b"ipco"),
}
_MASTERS = {  # EBML elements that hold others
    *(b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66"),
    *(b"\x16\x54\xae\x6b", b"\xae", b"\xe0", b"\x1f\x43\xb6\x75", b"\xa0", b"\x1c\x53\xbb\x6b"),
    *(b"\xbb", b"\xb7", b"\x55\xb0", b"\x12\x54\xc3\x67"),
}


@dataclass(frozen=True)
class Part:
    """data[start:end], of which data[size_at:size_at + size_bytes] says how long it is.

    body: where its fields begin. big: whether its numbers begin with the highest byte.
    """

    start: int
    end: int
    body: int
    size_at: int
    size_bytes: int
    big: bool


def parts(data: bytes) -> list[Part]:
    """All that can be found, outer ones before inner ones; none of an unknown format."""
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
        return [Part(at, at + 188, at + 1, at + 1, 2, True) for at in range(0, len(data), 188)]
    return []


def with_right_sums(data: bytes) -> bytes:
    """A PNG with the check sums of its chunks made right, so that a reader goes on into the lie."""
    if not data.startswith(b"\x89PNG"):
        return data
    whole = bytearray(data)
    for part in _png(data):
        body = data[part.start + 4 : part.end - 4]
        whole[part.end - 4 : part.end] = zlib.crc32(body).to_bytes(4, "big")
    return bytes(whole)


def _png(data: bytes) -> Iterator[Part]:
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        yield Part(at, end, at + 8, at, 4, True)
        at = end


def _riff(data: bytes, at: int, end: int) -> Iterator[Part]:
    while at + 8 <= end:
        stop = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        yield Part(at, min(stop, end), at + 8, at + 4, 4, False)
        if data[at : at + 4] in (b"RIFF", b"LIST"):
            yield from _riff(data, at + 12, min(stop, end))
        elif data[at : at + 4] == b"ANMF":
            yield from _riff(data, at + 24, min(stop, end))
        at = stop + stop % 2


def _jpeg(data: bytes) -> Iterator[Part]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield Part(at, end, at + 4, at + 2, 2, True)
        if data[at + 1] == 0xDA:
            found = data.find(b"\xff\xc4", end), data.find(b"\xff\xda", end)
            end = min((one for one in found if one >= 0), default=len(data))
        at = end


def _tiff(data: bytes) -> Iterator[Part]:
    if data[2] != 42:
        return
    at = int.from_bytes(data[4:8], "little")
    while at and at + 2 <= len(data):
        count = int.from_bytes(data[at : at + 2], "little")
        yield Part(at, at + 2 + 12 * count, at + 2, at, 2, False)
        for entry in range(at + 2, min(at + 2 + 12 * count, len(data) - 12), 12):
            yield Part(entry, entry + 12, entry + 2, entry + 4, 4, False)
        at = int.from_bytes(data[at + 2 + 12 * count : at + 6 + 12 * count], "little")


def _boxes(data: bytes, at: int, end: int) -> Iterator[Part]:
    while at + 8 <= end:
        size = int.from_bytes(data[at : at + 4], "big") or end - at
        if size < 8:
            return
        yield Part(at, min(at + size, end), at + 8, at, 4, True)
        name = data[at + 4 : at + 8]
        if name in _BOXES_OF_BOXES:
            yield from _boxes(data, at + (12 if name == b"meta" else 8), min(at + size, end))
        elif name == b"stsd":
            yield from _boxes(data, at + 16, min(at + size, end))
        at += size


def _ebml(data: bytes, at: int, end: int) -> Iterator[Part]:
    while at + 2 <= end:
        name_bytes = 9 - data[at].bit_length()
        size_at = at + name_bytes
        if name_bytes > 4 or size_at >= end or not data[size_at]:
            return
        size_bytes = 9 - data[size_at].bit_length()
        body = size_at + size_bytes
        size = int.from_bytes(data[size_at:body], "big") & ((1 << 7 * size_bytes) - 1)
        stop = end if size == (1 << 7 * size_bytes) - 1 else min(body + size, end)
        yield Part(at, stop, body, size_at, size_bytes, True)
        if data[at:size_at] in _MASTERS:
            yield from _ebml(data, body, stop)
        at = stop


def _flv(data: bytes) -> Iterator[Part]:
    at = 13
    while at + 15 <= len(data):
        end = at + 15 + int.from_bytes(data[at + 1 : at + 4], "big")
        yield Part(at, end, at + 4, at + 1, 3, True)
        at = end
