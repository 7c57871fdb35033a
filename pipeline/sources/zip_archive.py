"""Lists the members of zip archives in place, by their central directories.

The directory says where each member's own header is, and that header how long it is itself, so each
is read too: many at once, where members are small.
"""

import stat
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mediamill.pipeline.sources import media_names, uris
from mediamill.pipeline.sources.ids import Repeats, readable
from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.pipeline.sources.listing import SCHEMA
from mediamill.pipeline.sources.media_names import HIDDEN, NameFilter
from mediamill.pipeline.sources.random_access import RandomAccessFile
from mediamill.pipeline.sources.unit import BATCH_ROWS, Source, Unit, tables
from mediamill.pipeline.storage import file_version
from mediamill.pipeline.storage.storage import Place

_END = struct.Struct("<4s4H2LH")  # of the central directory
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_MAX_COMMENT = 65_535
_BLOCK = 1024 * 1024
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 0x1, 0x800
_FULL32 = 0xFFFFFFFF
_DAMAGED = "the archive is damaged or cut off"


class _DamagedError(ValueError):
    pass


@dataclass(frozen=True)
class _Member:
    """An entry of the central directory. offset: of its own header. mode: of a Unix file, or 0."""

    name: str
    flags: int
    method: int
    packed: int
    size: int
    offset: int
    mode: int


def list_archives(root: str, archives: Sequence[tuple[str, Place]], names: NameFilter) -> Source:
    """Returns the source of all members of zip files. See `webdataset.list_shards`."""

    def unit(name: str, place: Place) -> Unit:
        def read(left_out: LeftOut) -> Iterator[pa.Table]:
            return tables(_rows(name, place, names, left_out), SCHEMA)

        return Unit(readable(name), file_version.file_version(place), read, frozen=True)

    units = (unit(*archive) for archive in archives)
    return Source("zip", root, SCHEMA, units, archives=root)


def _rows(
    archive: str, place: Place, names: NameFilter, left_out: LeftOut
) -> Iterator[tuple[str | None, ...]]:
    url, repeats = uris.uri_of(place.url), Repeats()
    waiting: list[tuple[str, str]] = []
    with RandomAccessFile(place) as directory, RandomAccessFile(place) as headers:
        try:
            start, size, shift = _find_directory(directory)
            overlapping = _overlaps(_members(directory, start, size, shift))
            for member in _members(directory, start, size, shift):
                example = f"{archive}/{member.name}"
                reason = _reason(member, names, overlapping)
                if reason is None:
                    first = _first_byte(headers, member, start)
                    if first is None:
                        reason = "a member whose own header differs from the directory"
                    else:
                        inflated = member.size if member.method == _DEFLATED else None
                        uri = uris.member(url, first, member.packed, inflated)
                        waiting.append((f"{readable(archive)}/{readable(member.name)}", uri))
                if reason:
                    left_out.add(reason, example)
                if len(waiting) >= BATCH_ROWS:
                    yield from _numbered(waiting, repeats)
        except (_DamagedError, struct.error, ValueError) as error:
            left_out.add(f"{_DAMAGED}: {error}", archive)
        yield from _numbered(waiting, repeats)


def _numbered(waiting: list[tuple[str, str]], repeats: Repeats) -> Iterator[tuple[str | None, ...]]:
    ids = repeats.number([key for key, _ in waiting])
    yield from zip(ids, [uri for _, uri in waiting], strict=True)
    waiting.clear()


def _reason(member: _Member, names: NameFilter, overlapping: set[int]) -> str | None:
    if member.name.endswith("/"):
        return ""
    if stat.S_ISLNK(member.mode):
        return "a link in an archive"
    if media_names.is_hidden_path(member.name):
        return HIDDEN
    reason = names.reason(member.name)
    if reason is not None:
        return reason
    if member.flags & _ENCRYPTED:
        return "an encrypted member"
    if member.method not in (_STORED, _DEFLATED):
        return f"a member compressed by method {member.method}, expected stored or deflated"
    if member.size == 0 or member.packed == 0:
        return "an empty member"
    if member.method == _STORED and member.size != member.packed:
        return "a stored member with two different sizes"
    if member.offset in overlapping:
        return "a member that overlaps another one"
    return None


def _find_directory(file: RandomAccessFile) -> tuple[int, int, int]:
    """Returns the start and size of the central directory, and what all offsets are short by."""
    tail_size = min(file.size, _END.size + _MAX_COMMENT)
    file.seek(file.size - tail_size)
    tail = file.read(tail_size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise _DamagedError("no end of a central directory")
    end_at = file.size - tail_size + at
    *_, size, start, _ = _END.unpack_from(tail, at)
    locator_at = end_at - _END64_LOCATOR.size
    if locator_at >= 0:
        file.seek(locator_at)
        signature, _, end64, _ = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
        if signature == b"PK\6\7":
            file.seek(end64)
            fields = _END64.unpack(file.read(_END64.size))
            if fields[0] != b"PK\6\6":
                raise _DamagedError("no zip64 end of the central directory")
            size, start, end_at = fields[8], fields[9], end64
    shift = end_at - size - start  # of an archive behind other bytes
    if shift < 0:
        raise _DamagedError("its central directory is not where it should be")
    return start + shift, size, shift


def _members(file: RandomAccessFile, start: int, size: int, shift: int) -> Iterator[_Member]:
    """Yields the entries of the central directory, which is read block by block."""
    buffer, at, next_read = b"", 0, start
    end = start + size
    while True:
        if len(buffer) - at < _ENTRY.size + 3 * _MAX_COMMENT and next_read < end:
            file.seek(next_read)
            more = file.read(min(_BLOCK, end - next_read))
            if not more:
                raise _DamagedError("its central directory is cut off")
            next_read += len(more)
            buffer, at = buffer[at:] + more, 0
        if at >= len(buffer):
            return
        fields = _ENTRY.unpack_from(buffer, at)
        if fields[0] != b"PK\1\2":
            raise _DamagedError("no entry where its central directory should have one")
        flags, method, packed, unpacked = fields[5], fields[6], fields[10], fields[11]
        name_size, extra_size, comment_size = fields[12:15]
        mode, offset = fields[17] >> 16, fields[18]
        name_at = at + _ENTRY.size
        name = buffer[name_at : name_at + name_size]
        extra = buffer[name_at + name_size : name_at + name_size + extra_size]
        unpacked, packed, offset = _zip64(extra, unpacked, packed, offset)
        at = name_at + name_size + extra_size + comment_size
        if at > len(buffer):
            raise _DamagedError("its central directory is cut off")
        encoding, errors = ("utf-8", "surrogateescape") if flags & _UTF8 else ("cp437", "strict")
        shown = name.decode(encoding, errors)
        yield _Member(shown, flags, method, packed, unpacked, offset + shift, mode)


def _zip64(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Replaces the values that do not fit 32 bits by those of the zip64 field."""
    values = [size, packed, offset]
    at = 0
    while _FULL32 in values and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field_at = at + 4
            for number, value in enumerate(values):
                if value == _FULL32:
                    (values[number],) = struct.unpack_from("<Q", extra, field_at)
                    field_at += 8
            break
        at += 4 + length
    return values[0], values[1], values[2]


def _overlaps(members: Iterator[_Member]) -> set[int]:
    """Returns the offsets of members that share bytes with another one, as in zip bombs."""
    starts, sizes = array("Q"), array("Q")
    for member in members:
        starts.append(member.offset)
        sizes.append(_LOCAL.size + member.packed)
    begin, size = np.array(starts, np.uint64), np.array(sizes, np.uint64)
    order = np.argsort(begin, kind="stable")
    begin, ends = begin[order], (begin + size)[order]
    if begin.size < 2:
        return set()
    furthest = np.maximum.accumulate(ends)
    clash = begin[1:] < furthest[:-1]
    # Both the member that begins too early, and the one that it begins in.
    return set(begin[1:][clash].tolist()) | set(begin[:-1][begin[1:] < ends[:-1]].tolist())


def _first_byte(file: RandomAccessFile, member: _Member, directory: int) -> int | None:
    """The offset of a member's bytes; None if its own header contradicts the directory."""
    file.seek(member.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        return None
    fields = _LOCAL.unpack(header)
    flags, method, name_size, extra_size = fields[3], fields[4], fields[10], fields[11]
    first = member.offset + _LOCAL.size + name_size + extra_size
    differs = method != member.method or (flags ^ member.flags) & _ENCRYPTED
    return None if differs or first + member.packed > directory else first
