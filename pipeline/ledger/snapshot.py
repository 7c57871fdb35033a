"""Turns a LedgerState into one compact object and back, and says when a log should get one.

A snapshot stands for all records up to its number, so that a resume reads it and the few records
after it. Finished and untouched files cost a byte of bitmap each, others one bit a row before
compression. Snapshots are checked by a digest: `parse` gives back exactly what was dumped, or
raises. Writing them, and removing what they make superfluous, is the log's.
"""

import hashlib
import json
import struct
import types
import typing
from collections.abc import Collection
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mediamill.pipeline.ledger.state import LedgerState

SUFFIX = ".snapshot"

_MAGIC = b"mm-ledger"
_VERSION = 1
_HEAD = struct.Struct("<9sH16s")  # magic, version, digest of the rest
_LENGTH = struct.Struct("<Q")
_UNTOUCHED, _FINISHED, _MIXED = range(3)  # what a file's bitmap holds
_KEPT = 2  # snapshots: should the newest be damaged, the one before it serves
# A record in the log costs about a request at the next start; a snapshot costs its bytes now.
_LEAST_RECORDS, _MOST_RECORDS, _BYTES_PER_RECORD = 256, 4096, 16_384


def dump(state: LedgerState) -> bytes:
    """The snapshot of `state`, which must not change meanwhile."""
    named = _plain(replace(state, done=[]))
    text = json.dumps(named, ensure_ascii=False, separators=(",", ":")).encode()
    pairs = list(zip(state.files, state.done, strict=True))
    kinds = np.array([_kind(file.rows, bitmap) for file, bitmap in pairs], np.uint8)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        for part in (_LENGTH.pack(len(text)), text, kinds.tobytes()):
            out.write(part)
        for kind, (_, bitmap) in zip(kinds, pairs, strict=True):
            if kind == _MIXED:
                out.write(bitmap.data)
    body = memoryview(sink.getvalue())
    return b"".join((_HEAD.pack(_MAGIC, _VERSION, _digest(body)), body))


def parse(data: bytes) -> LedgerState:
    """The state that was dumped. Raises ValueError when `data` is not a whole, sound snapshot."""
    if len(data) < _HEAD.size:
        raise ValueError("the snapshot is cut off")
    magic, version, digest = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("this is no snapshot")
    if version != _VERSION:
        raise ValueError(f"found a snapshot of version {version}, expected {_VERSION}")
    body = memoryview(data)[_HEAD.size :]
    if _digest(body) != digest:
        raise ValueError("the snapshot is damaged")
    with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as source:
        (size,) = _LENGTH.unpack(source.read(_LENGTH.size))
        state: LedgerState = _made(LedgerState, json.loads(source.read(size)))
        kinds = source.read(len(state.files))
        for kind, file in zip(kinds, state.files, strict=True):
            state.done.append(_bitmap(kind, file.rows, source))
    return state


def due(state: LedgerState, records_since: int) -> bool:
    """Whether the log should get a snapshot, `records_since` records after the one before.

    The larger a snapshot may be, the rarer it is: a record stands for at most 16 KiB of them.
    """
    size = sum(bitmap.nbytes for bitmap in state.done)
    wait = min(max(size // _BYTES_PER_RECORD, _LEAST_RECORDS), _MOST_RECORDS)
    return records_since >= wait


def file_name(sequence: int) -> str:
    """Of the snapshot of the records up to `sequence`."""
    return f"{sequence:012}{SUFFIX}"


def newest_first(names: Collection[str]) -> list[str]:
    """The snapshots among the names of a log's files, in the order in which to try them."""
    return sorted((name for name in names if name.endswith(SUFFIX)), reverse=True)


def superfluous(names: Collection[str], fences: Collection[int]) -> list[str]:
    """Those of a log's files that no resume needs any more, in the order in which to remove them.

    Kept are the two newest snapshots and all records after the older of them, so that no single
    damaged object can lose a row. Kept are also the records that fence, numbered `fences`, and the
    one before each: a writer that was replaced must find its next number taken for ever. That is
    the fence's own, or the one before when the writer's last record was stored and it never knew.
    """
    snapshots = newest_first(names)
    if len(snapshots) < _KEPT:
        return []
    covered = _number(snapshots[_KEPT - 1])
    kept = {*fences, *(fence - 1 for fence in fences)}
    records = sorted(
        name
        for name in names
        if name.endswith(".json") and _number(name) <= covered and _number(name) not in kept
    )
    return [*records, *reversed(snapshots[_KEPT:])]


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def _digest(body: memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _kind(rows: int, bitmap: npt.NDArray[np.uint8]) -> int:
    finished = int(np.bitwise_count(bitmap).sum(dtype=np.int64))
    if finished == 0:
        return _UNTOUCHED
    return _FINISHED if finished == rows else _MIXED


def _bitmap(kind: int, rows: int, source: Any) -> npt.NDArray[np.uint8]:
    size = -(-rows // 8)
    if kind == _MIXED:
        return np.frombuffer(bytearray(source.read(size)), np.uint8)  # one that may be written to
    bitmap = np.full(size, 0xFF if kind == _FINISHED else 0, np.uint8)
    if kind == _FINISHED and rows % 8:
        bitmap[-1] = (1 << rows % 8) - 1
    return bitmap


def _plain(value: Any) -> Any:
    """The value as JSON has it; `_made` knows from the type what it was."""
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value) if one.init}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _made(kind: Any, value: Any) -> Any:
    """The value of type `kind` that `_plain` has made plain. Raises ValueError for a field that
    this version does not know.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or value is None:
        return value
    if origin is types.UnionType:  # with None
        return _made(inner[0], value)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind)
        named = value if isinstance(value, dict) else dict(zip(hints, value, strict=True))
        if unknown := named.keys() - hints.keys():
            raise ValueError(f"it says {', '.join(sorted(unknown))} of a {kind.__name__}")
        return kind(**{name: _made(hints[name], one) for name, one in named.items()})
    if origin is dict:
        return {inner[0](key): _made(inner[1], one) for key, one in value.items()}
    if origin in (list, tuple):
        return origin(_made(inner[0], one) for one in value)
    return kind(value)
