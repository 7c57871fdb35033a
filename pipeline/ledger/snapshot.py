"""The snapshot format of a LedgerState, and the rules of when to write and to remove snapshots.

A snapshot replaces all records up to its number, so that a resume reads it and the few records
after it. A finished or untouched file takes one byte, any other file one bit a row before
compression. A digest protects snapshots: `parse` returns exactly what was dumped, or raises.
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

from mediamill.pipeline.ledger.state import LedgerState, bitmap_of, text_of_bitmap

SUFFIX = ".snapshot"

_MAGIC = b"mm-ledger"
_VERSION = 1
_HEAD = struct.Struct("<9sH16s")  # magic, version, digest of the rest
_LENGTH = struct.Struct("<Q")
_UNTOUCHED, _FINISHED, _MIXED = range(3)  # of a file's bitmap; only mixed ones are stored
_RETAINED = 2  # snapshots: if the newest one is damaged, the one before it is read
# A record in the log costs about a request at the next start; a snapshot costs its bytes now.
_MIN_RECORDS, _MAX_RECORDS, _BYTES_PER_RECORD = 256, 4096, 16_384


def dump(state: LedgerState) -> bytes:
    """Serializes `state`, which must not change meanwhile."""
    fields_json = _to_json(replace(state, done=[]))
    text = json.dumps(fields_json, ensure_ascii=False, separators=(",", ":")).encode()
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
    """Returns the state that was dumped. Raises ValueError when `data` is not a valid snapshot."""
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
        state: LedgerState = _from_json(LedgerState, json.loads(source.read(size)))
        kinds = source.read(len(state.files))
        for kind, file in zip(kinds, state.files, strict=True):
            state.done.append(_bitmap(kind, file.rows, source))
    return state


def due(state: LedgerState, records_since: int) -> bool:
    """Returns whether to write a snapshot, `records_since` records after the previous one.

    A large state is written less often: the interval grows by a record for each 16 KiB of bitmaps.
    """
    size = sum(bitmap.nbytes for bitmap in state.done)
    interval = min(max(size // _BYTES_PER_RECORD, _MIN_RECORDS), _MAX_RECORDS)
    return records_since >= interval


def file_name(sequence: int) -> str:
    """Returns the name of the snapshot of the records up to `sequence`."""
    return f"{sequence:012}{SUFFIX}"


def newest_first(names: Collection[str]) -> list[str]:
    """Returns the names of the snapshots among those of a log's files."""
    return sorted((name for name in names if name.endswith(SUFFIX)), reverse=True)


def obsolete(names: Collection[str], fences: Collection[int]) -> list[str]:
    """Returns the log's files that no resume needs, in the order in which to remove them.

    Retains the two newest snapshots and all records after the older one, so that no single damaged
    object can lose a row. Retains also the fences, by number, and the record before each: a
    replaced writer must always find its next number taken. That is the fence's number, or the one
    before it if the writer's last record was stored without its knowledge.
    """
    snapshots = newest_first(names)
    if len(snapshots) < _RETAINED:
        return []
    covered = number_of(snapshots[_RETAINED - 1])
    retained = {*fences, *(fence - 1 for fence in fences)}
    records = sorted(
        name
        for name in names
        if name.endswith(".json") and number_of(name) <= covered and number_of(name) not in retained
    )
    return [*records, *reversed(snapshots[_RETAINED:])]


def number_of(name: str) -> int:
    """Returns the record number of a log's file: its own, or the last that a snapshot covers."""
    return int(name.partition(".")[0])


def _digest(body: memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _kind(rows: int, bitmap: npt.NDArray[np.uint8]) -> int:
    finished = int(np.bitwise_count(bitmap).sum(dtype=np.int64))
    return {rows: _FINISHED, 0: _UNTOUCHED}.get(finished, _MIXED)


def _bitmap(kind: int, rows: int, source: Any) -> npt.NDArray[np.uint8]:
    size = -(-rows // 8)
    if kind == _MIXED:
        return np.frombuffer(bytearray(source.read(size)), np.uint8)  # writable
    bitmap = np.full(size, 0xFF if kind == _FINISHED else 0, np.uint8)
    if kind == _FINISHED and rows % 8:
        bitmap[-1] = (1 << rows % 8) - 1
    return bitmap


def _to_json(value: Any) -> Any:
    """Returns the value as JSON types; `_from_json` restores it from its declared type."""
    if is_dataclass(value):
        return {
            item.name: _to_json(getattr(value, item.name)) for item in fields(value) if item.init
        }
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return text_of_bitmap(value) if isinstance(value, np.ndarray) else value


def _from_json(kind: Any, value: Any) -> Any:
    """Returns the value of type `kind` that `_to_json` converted.

    Raises ValueError for a field that this version does not have.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or value is None:
        return value
    if origin is types.UnionType:  # with None
        return _from_json(inner[0], value)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind)
        named = value if isinstance(value, dict) else dict(zip(hints, value, strict=True))
        if unknown := named.keys() - hints.keys():
            raise ValueError(f"it says {', '.join(sorted(unknown))} of a {kind.__name__}")
        return kind(**{name: _from_json(hints[name], item) for name, item in named.items()})
    if origin is dict:
        return {inner[0](key): _from_json(inner[1], item) for key, item in value.items()}
    if origin is np.ndarray:
        return bitmap_of(value)
    if origin in (list, tuple):
        return origin(_from_json(inner[0], item) for item in value)
    return kind(value)
