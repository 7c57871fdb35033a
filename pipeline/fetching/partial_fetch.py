"""Fetches only the header and the index of a large remote file, into a sparse file of its size.

This is enough to read a video's duration; the holes take no space on the disk. In MP4 and MOV files
the index (the moov box) may be anywhere, so their boxes are followed with range requests. Of other
containers only the first bytes are fetched, and the reader decides whether they suffice.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mediamill.pipeline.fetching.transfer import Source
from mediamill.pipeline.storage.local_files import write_at
from mediamill.pipeline.storage.retries import (
    Backoff,
    ContentChangedError,
    Deadline,
    IncompleteError,
    retry,
)

HEADER_BYTES = 1024 * 1024
_READ_AHEAD_BYTES = 64 * 1024  # read with the header of a box, which may include the next header
_MAX_BOXES = 16  # a file with more is fragmented: its first bytes hold the duration, or none do
_MAX_INDEX_BYTES = 256 * 1024**2
_BOX_TYPES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


@dataclass(frozen=True)
class ContentInfo:
    """What a source reports of a content: its size in bytes, and its version if it has one."""

    size: int
    version: str | None


def fetch_first_bytes(
    source: Source, count: int, deadline: Deadline, backoff: Backoff
) -> tuple[ContentInfo, bytes] | None:
    """Returns the size and version of a content and its first bytes, at most `count`.

    Returns None if the source does not support ranges or does not report the size.
    Raises what the last attempt raised.
    """

    def attempt() -> tuple[ContentInfo, bytes] | None:
        with source.open(0, count, None, deadline) as reply:
            if reply.total is None or not reply.supports_ranges:
                return None
            data = _read_exactly(reply.chunks, min(count, reply.total), deadline)
            return ContentInfo(reply.total, reply.version), data

    return retry(attempt, backoff, source.renew, deadline)


def write_header_and_index(
    descriptor: int,
    header: bytes,
    info: ContentInfo,
    source: Source,
    deadline: Deadline,
    backoff: Backoff,
) -> None:
    """Writes the header, and the index wherever it is, into an empty file.

    Raises what the last attempt raised; ContentChangedError if the content has changed since
    `info`.
    """
    os.ftruncate(descriptor, info.size)
    write_at(descriptor, header, 0)
    if header[4:8] not in _BOX_TYPES:
        return

    def fetch_range(start: int, stop: int) -> bytes:
        stop = min(stop, info.size)

        def attempt() -> bytes:
            with source.open(start, stop, info.version, deadline) as reply:
                same = reply.version == info.version and reply.total == info.size
                if not same or reply.start != start:
                    raise ContentChangedError("the file changed while it was read")
                return _read_exactly(reply.chunks, stop - start, deadline)

        data = retry(attempt, backoff, source.renew, deadline)
        write_at(descriptor, data, start)
        return data

    _fetch_index(fetch_range, header, info.size)


def _fetch_index(fetch_range: Callable[[int, int], bytes], header: bytes, size: int) -> None:
    """Follows the top-level boxes to the index (moov) and fetches all of it.

    Source: ISO/IEC 14496-12, 4.2.
    """
    box_start, buffer, buffer_start = 0, header, 0
    for _ in range(_MAX_BOXES):
        if box_start + 8 > size:
            return
        if box_start + 16 > buffer_start + len(buffer):
            buffer_start = box_start
            buffer = fetch_range(box_start, box_start + _READ_AHEAD_BYTES)
        box = buffer[box_start - buffer_start : box_start - buffer_start + 16]
        length, box_type = int.from_bytes(box[:4], "big"), box[4:8]
        if length == 1:
            length = int.from_bytes(box[8:], "big")
        elif length == 0:
            length = size - box_start
        if length < 8:
            return  # not a box; the reader reports what is wrong
        if box_type == b"moov":
            missing = buffer_start + len(buffer)
            if missing < box_start + length <= box_start + _MAX_INDEX_BYTES:
                fetch_range(missing, box_start + length)
            return
        box_start += length


def _read_exactly(chunks: Iterator[bytes], count: int, deadline: Deadline) -> bytes:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        deadline.check()
        if len(data) >= count:
            break
    if len(data) < count:
        raise IncompleteError(f"got {len(data)} of {count} bytes")
    return bytes(data[:count])
