"""Turns a large remote file into one of its true size that holds its header and index only.

The rest are holes, which take no place on the disk. For who asks how long a video lasts; whether
what is there tells it, is for the reader to say. Knows the boxes of MP4 and MOV files, whose index
may be anywhere; other kinds have at the beginning what they have.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mediamill.pipeline.fetching.transfer import Source
from mediamill.pipeline.storage.retries import (
    Backoff,
    ContentChangedError,
    Deadline,
    IncompleteError,
    retry,
)

HEAD_BYTES = 1024 * 1024
_AHEAD_BYTES = 64 * 1024  # behind the header of a box: the next one may be there too
_MOST_BOXES = 16  # a file of more is made of fragments; its head tells or nothing does
_MOST_INDEX_BYTES = 256 * 1024**2
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


@dataclass(frozen=True)
class Facts:
    """What a source says of a content: its size in bytes, and its version, None = not told."""

    size: int
    version: str | None


def look(
    source: Source, count: int, deadline: Deadline, backoff: Backoff
) -> tuple[Facts, bytes] | None:
    """The facts and the first bytes, at most `count`; None where the source knows no ranges or no
    sizes. Raises what the last try raised.
    """

    def first() -> tuple[Facts, bytes] | None:
        with source.open(0, count, None, deadline) as answer:
            if answer.total is None or not answer.ranged:
                return None
            data = _taken(answer.pieces, min(count, answer.total), deadline)
            return Facts(answer.total, answer.version), data

    return retry(first, backoff, source.renew, deadline)


def fill(
    descriptor: int,
    head: bytes,
    facts: Facts,
    source: Source,
    deadline: Deadline,
    backoff: Backoff,
) -> None:
    """Writes the head, and the index wherever it is, into an empty file.

    Raises what the last try raised; ContentChangedError when the content is another one by now.
    """
    os.ftruncate(descriptor, facts.size)
    os.pwrite(descriptor, head, 0)
    if head[4:8] not in _BOXES:
        return

    def part(start: int, stop: int) -> bytes:
        data = _part(source, start, min(stop, facts.size), facts, deadline, backoff)
        os.pwrite(descriptor, data, start)
        return data

    _find_index(part, head, facts.size)


def _find_index(part: Callable[[int, int], bytes], head: bytes, size: int) -> None:
    """Walks the outermost boxes up to the index (moov) and brings all of it.

    Source: ISO/IEC 14496-12, 4.2.
    """
    at, there, begin = 0, head, 0
    for _ in range(_MOST_BOXES):
        if at + 8 > size:
            return
        if at + 16 > begin + len(there):
            there, begin = part(at, at + _AHEAD_BYTES), at
        box = there[at - begin : at - begin + 16]
        length, name = int.from_bytes(box[:4], "big"), box[4:8]
        if length == 1:
            length = int.from_bytes(box[8:], "big")
        elif length == 0:
            length = size - at
        if length < 8:
            return  # no box: what to make of it is the reader's affair
        if name == b"moov":
            missing = begin + len(there)
            if missing < at + length <= at + _MOST_INDEX_BYTES:
                part(missing, at + length)
            return
        at += length


def _part(
    source: Source,
    start: int,
    stop: int,
    facts: Facts,
    deadline: Deadline,
    backoff: Backoff,
) -> bytes:
    def once() -> bytes:
        with source.open(start, stop, facts.version, deadline) as answer:
            same = answer.version == facts.version and answer.total == facts.size
            if not same or answer.start != start:
                raise ContentChangedError("the file changed while it was read")
            return _taken(answer.pieces, stop - start, deadline)

    return retry(once, backoff, source.renew, deadline)


def _taken(pieces: Iterator[bytes], count: int, deadline: Deadline) -> bytes:
    data = bytearray()
    for piece in pieces:
        data += piece
        deadline.check()
        if len(data) >= count:
            break
    if len(data) < count:
        raise IncompleteError(f"got {len(data)} of {count} bytes")
    return bytes(data[:count])
