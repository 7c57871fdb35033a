"""Reads a part of a file as if it were a content of its own, and inflates deflated ones."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from mediamill.pipeline.fetching.content import FetchedContent, FetchedMedium
from mediamill.pipeline.fetching.member_uri import MemberUri
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.fetching.transfer import RangeReply, Source
from mediamill.pipeline.storage.retries import Deadline
from mediamill.schemas.errors import ErrorCode, RowError

_CHUNK_BYTES = 1024 * 1024


class MemberSource(Source):
    """The `Source` of a member, given that of the whole file.

    A server that ignores ranges sends the whole file: then the bytes before the member are read and
    dropped, at most `max_skipped` of them.
    """

    def __init__(self, member: MemberUri, whole: Source, max_skipped: int) -> None:
        self._member, self._whole, self._max_skipped = member, whole, max_skipped

    @contextmanager
    def open(
        self, start: int, stop: int | None, version: str | None, deadline: Deadline
    ) -> Iterator[RangeReply]:
        member = self._member
        end = member.last + 1 if stop is None else min(member.first + stop, member.last + 1)
        first = member.first + start
        with self._whole.open(first, end, version, deadline) as reply:
            check_member_inside(member, reply.total)
            chunks = reply.chunks
            if reply.start != first:
                if first - reply.start > self._max_skipped:
                    raise RowError(
                        ErrorCode.FETCH_FAILED,
                        "found a server that sends only whole files, and the member begins at "
                        f"byte {member.first}, expected one that supports range requests",
                    )
                chunks = _skip(chunks, first - reply.start)
            # A checksum that the source states is that of the whole file.
            yield replace(
                reply, start=start, total=member.size, chunks=_cut(chunks, end - first), digest=None
            )

    def check_unchanged(self, version: str | None, deadline: Deadline) -> None:
        self._whole.check_unchanged(version, deadline)

    def renew(self) -> bool:
        return self._whole.renew()


def check_member_inside(member: MemberUri, total: int | None) -> None:
    """Raises RowError, fetch_failed, if a file of `total` bytes ends before the member does."""
    if total is not None and member.last >= total:
        raise RowError(
            ErrorCode.FETCH_FAILED,
            f"found a file of {total} bytes, expected at least {member.last + 1}: it has changed "
            "since its members were listed, or was cut off",
        )


def inflate(medium: FetchedMedium, size: int, content: FetchedContent) -> FetchedMedium:
    """Returns what a deflated medium becomes, and releases that medium.

    size: the bytes that it must become. content: receives them. Raises RowError, decode_corrupt
    if it becomes more or fewer bytes, or is not deflated; fetch_too_large.
    """
    try:
        content.expect(size)
        inflater, offset = zlib.decompressobj(-zlib.MAX_WBITS), 0
        for chunk in _chunks(medium):
            rest = chunk
            while rest and not inflater.eof:
                part = inflater.decompress(rest, min(_CHUNK_BYTES, size - offset + 1))
                if offset + len(part) > size:
                    raise _wrong_size(f"more than {size}", size)
                content.write(offset, part)
                offset += len(part)
                rest = inflater.unconsumed_tail
        if not inflater.eof:
            # What is left in the inflater, after all bytes have been fed to it.
            part = inflater.decompress(b"", size - offset + 1)
            content.write(offset, part[: size - offset])
            offset += len(part)
        if offset != size or not inflater.eof:
            raise _wrong_size(str(offset), size)
        return content.finish(offset)
    except zlib.error as error:
        raise RowError(
            ErrorCode.DECODE_CORRUPT, f"the member's bytes are not deflated: {error}"
        ) from error
    finally:
        Spool.release([medium.path])


def _wrong_size(found: str, size: int) -> RowError:
    return RowError(
        ErrorCode.DECODE_CORRUPT, f"the member becomes {found} bytes, expected {size} as declared"
    )


def _chunks(medium: FetchedMedium) -> Iterator[bytes | memoryview]:
    if medium.data is not None:
        for start in range(0, medium.size, _CHUNK_BYTES):
            yield medium.data[start : start + _CHUNK_BYTES].tobytes()
        return
    assert medium.path is not None
    with medium.path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _skip(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    for chunk in chunks:
        if count < len(chunk):
            yield chunk[count:] if count else chunk
        count = max(0, count - len(chunk))


def _cut(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    for chunk in chunks:
        if len(chunk) >= count:
            yield chunk[:count]
            return  # the rest of the file is not read
        count -= len(chunk)
        yield chunk
