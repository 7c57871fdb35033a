"""Stages rows in hidden objects, and publishes them as visible Parquet files.

A write task stages its rows in one object, folder after folder. Later one file is made of a group,
which the ledger forms of parts of many such objects. Publishing may be cut off at any instant and
repeated by any process: a file appears with all of its content or not at all, and its parts are
kept until the ledger has recorded that it is visible.

A run has a permit to publish, which a newer run removes before it publishes or replaces anything.
On a local file system it is the folder from which files are renamed: without it nothing can appear.
An object store has no such step, so a task looks before and after; see `_withdraw`.
"""

import contextlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.log import HIDDEN, TakenOverError
from mediamill.pipeline.ledger.state import Group, Part
from mediamill.pipeline.records import manifest_order
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.retries import IncompleteError
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import parquet_options, take_rows

_COMPRESSION = "zstd"
WRITER_OPTIONS = {"compression": _COMPRESSION, "write_page_checksum": True}  # of visible files
# Smaller parts are not compressed: reading a compressed one takes 25 times as long.
_COMPRESS_BYTES = 32 * 1024
_GAP_BYTES = 64 * 1024  # the largest gap between two parts that one request reads together
_ROW_GROUP = 65_536  # rows; larger groups could hold more text than 32-bit offsets can address
# Not ".parquet": some readers take every *.parquet file below a folder.
_PARTS, WHOLE = ".parts", ".whole"
SOURCES = b"mediamill.sources"  # key of a compacted file's footer: names and rows of its sources
# Key of a file with rows that a retry replaced: a list of retries, each with the rows' positions.
REPLACED = b"mediamill.replaced"

Contents = Mapping[tuple[str, int], memoryview]  # of parts, by token and offset


class _ByteRange(NamedTuple):
    """Bytes of one staged object, and the parts in them, by offset."""

    token: str
    start: int
    stop: int
    parts: list[Part]


def staged(output: Place) -> Place:
    """Returns the hidden folder of the staged objects."""
    return output / HIDDEN / "staged"


def visible_files(output: Place) -> list[str]:
    """Returns the names of the files that readers see, sorted."""
    names = storage.list_files(output)
    return [name for name in names if not name.startswith(HIDDEN) and name.endswith(".parquet")]


def stage(
    output: Place, token: str, tables: Iterable[tuple[str, pa.Table]]
) -> tuple[tuple[str, Part], ...]:
    """Writes tables to one hidden object, durably. Returns each folder with its part.

    tables: each with the folder that its rows will be in, and with the result's columns and `row`.
    They should be sorted by folder, since neighbours are read together.
    """
    parts = []
    with io.BytesIO() as buffer:
        for folder, table in tables:
            start = buffer.tell()
            codec = None if table.nbytes < _COMPRESS_BYTES else _COMPRESSION
            options = pa.ipc.IpcWriteOptions(compression=codec)
            with pa.ipc.new_stream(buffer, table.schema, options=options) as stream:
                stream.write_table(table)
            parts.append((folder, Part(token, start, buffer.tell() - start, 0, table.num_rows)))
        storage.put(_object(output, token), buffer.getvalue())
    return tuple(parts)


def discard(output: Place, tokens: Iterable[str]) -> None:
    """Removes the staged objects of tokens that are not committed, or no longer needed."""
    for token in tokens:
        storage.remove(_object(output, token))


def leftovers(output: Place, needed: Iterable[str]) -> list[Place]:
    """Returns the staged objects except those of the `needed` tokens."""
    needed_names = {f"{token}{_PARTS}" for token in needed}
    names = storage.list_files(staged(output))
    return [staged(output) / name for name in names if name not in needed_names]


def read_parts(output: Place, groups: Iterable[Group]) -> Contents:
    """Reads the parts of the groups, in few requests. Parts that do not exist are left out."""
    unread = _byte_ranges(groups)
    contents: dict[tuple[str, int], memoryview] = {}

    def read(fs: Any) -> None:
        """Reads the unread ranges, so that a retry does not read the others again."""
        nonlocal unread
        paths = [_object(output, item.token).path for item in unread]
        starts, stops = [item.start for item in unread], [item.stop for item in unread]
        results = fs.cat_ranges(paths, starts, stops, on_error="return")
        failed: list[tuple[_ByteRange, Exception]] = []
        for item, path, result in zip(unread, paths, results, strict=True):
            size = item.stop - item.start
            if isinstance(result, FileNotFoundError):
                continue
            if not isinstance(result, Exception) and len(result) != size:
                result = IncompleteError(
                    f"{path}: found {len(result)} bytes of its parts, expected {size}"
                )
            if isinstance(result, Exception):
                failed.append((item, result))
                continue
            for part in item.parts:
                start = part.offset - item.start
                view = memoryview(result)[start : start + part.length]
                contents[part.token, part.offset] = view
        unread = [item for item, _ in failed]
        if failed:
            raise failed[-1][1]

    if unread:
        storage.with_retries(output, read)
    return contents


def permit(output: Place, run: str) -> None:
    """Lets the tasks of a run publish. Must be called before any of them does.

    The caller checks afterwards that no newer run has begun; a newer one then finds the permit.
    """
    place = _permits(output) / run
    if output.is_local:
        Path(place.path).mkdir(parents=True, exist_ok=True)
    else:
        storage.put(place, b"permit")


def permits(output: Place) -> list[str]:
    """Returns the runs that may publish."""
    place = _permits(output)
    if not output.is_local:
        return storage.list_files(place)
    folder = Path(place.path)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def revoke(output: Place, runs: Iterable[str]) -> None:
    """Keeps these runs from publishing, also tasks that are about to."""
    for run in runs:
        place = _permits(output) / run
        if not output.is_local:
            storage.remove(place)
            continue
        # In one step: a task may be writing a file there.
        gone = Path((staged(output) / uuid.uuid4().hex).path)
        gone.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            Path(place.path).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def publish(output: Place, group: Group, run: str, contents: Contents | None = None) -> int:
    """Makes the group's file visible, with rows in the manifest's order. May be repeated.

    run: that has given the group to this task. contents: of at least its parts, if they are read.
    Returns the file's bytes.
    Raises FileNotFoundError when a part is missing and the file is not visible, and TakenOverError
    when a newer run has begun.
    """
    target = output / group.name
    if (size := storage.size(target)) is not None:
        return size
    try:
        data = _parquet(merged(group, contents or read_parts(output, [group])))
    except FileNotFoundError:
        # Another process has published it meanwhile, and removed the parts.
        if (size := storage.size(target)) is not None:
            return size
        raise
    own = _permits(output) / run
    if output.is_local:
        _rename_from(Path(own.path), Path(target.path), data)
        return len(data)
    if not storage.exists(own):
        raise _revoked(run)
    storage.put(target, data)  # atomic in an object store
    if not storage.exists(own):
        _withdraw(output, group.name)
        raise _revoked(run)
    return len(data)


def _rename_from(permit_folder: Path, target: Path, data: bytes) -> None:
    """Writes a local file durably. Without the permit it cannot appear."""
    whole = permit_folder / f"{uuid.uuid4().hex}{WHOLE}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        whole.rename(target)
    except FileNotFoundError:
        raise _revoked(permit_folder.name) from None
    storage.fsync(target.parent)


def _withdraw(output: Place, name: str) -> None:
    """Removes a file again if a compaction has replaced it while it was written."""
    folder = name.rpartition("/")[0]
    for other in visible_files(output):
        if other.rpartition("/")[0] == folder and other != name:
            place = output / other
            with contextlib.suppress(FileNotFoundError), place.fs.open(place.path, "rb") as opened:
                noted = (pq.read_metadata(opened).metadata or {}).get(SOURCES, b"[]")
                if name.rpartition("/")[2] in {source for source, _ in json.loads(noted)}:
                    storage.remove(output / name)
                    return


def _permits(output: Place) -> Place:
    return output / HIDDEN / "publishing"


def _revoked(run: str) -> TakenOverError:
    return TakenOverError(f"run {run} may publish no more files, since a newer run has begun")


def merged(group: Group, contents: Contents) -> pa.Table:
    """Returns the rows of the group's parts. Raises FileNotFoundError when a part is missing."""
    tables = []
    for part in group.parts:
        content = contents.get((part.token, part.offset))
        if content is None:
            raise FileNotFoundError(f"{part.token}: the staged object is gone")
        with pa.ipc.open_stream(pa.py_buffer(content)) as stream:
            tables.append(stream.read_all().slice(part.start, part.rows))
    return pa.concat_tables(tables)


def _byte_ranges(groups: Iterable[Group]) -> list[_ByteRange]:
    """Returns the byte ranges of the groups' parts. Neighbouring parts share a range."""
    # A part that two groups share is read once.
    parts = {(part.token, part.offset): part for group in groups for part in group.parts}
    ranges: list[_ByteRange] = []
    for part in (parts[key] for key in sorted(parts)):
        last, stop = ranges[-1] if ranges else None, part.offset + part.length
        if last and last.token == part.token and part.offset - last.stop <= _GAP_BYTES:
            last.parts.append(part)
            ranges[-1] = last._replace(stop=stop)
        else:
            ranges.append(_ByteRange(part.token, part.offset, stop, [part]))
    return ranges


def _parquet(table: pa.Table) -> bytes:
    order = manifest_order(table)
    table = table.drop_columns([c.ROW])
    with io.BytesIO() as buffer:
        options = {**parquet_options(table.schema), **WRITER_OPTIONS}
        with pq.ParquetWriter(buffer, table.schema, **options) as writer:
            for start in range(0, len(order), _ROW_GROUP):
                writer.write_table(take_rows(table, order[start : start + _ROW_GROUP]))
        return buffer.getvalue()


def _object(output: Place, token: str) -> Place:
    return staged(output) / f"{token}{_PARTS}"
