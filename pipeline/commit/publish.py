"""Turns staged rows into visible files: a write task's rows wait in one hidden object, folder after
folder, until a group takes parts of many such objects together into one Parquet file.

Publishing may be cut off at any instant and done again by anyone: a file's name appears with all
of its content or not at all, and the parts are there until the ledger knows that it did. Which
parts form a group is the ledger's decision.
"""

import io
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.commit.ledger_log import HIDDEN
from pipeline.commit.ledger_state import Group, Part
from pipeline.fetching.retries import IncompleteError
from pipeline.records import ROW_FILE, ROW_INDEX, ROW_STRUCT
from pipeline.storage import Place
from schemas import columns as c

_COMPRESSION = "zstd"
_ROW_GROUP = 65_536  # rows; longer ones could have more text than 32-bit offsets reach
# Readers that take every *.parquet below a folder must not see staged objects either.
_PARTS, _WHOLE = ".parts", ".whole"


def staged(output: Place) -> Place:
    """The hidden folder of all that is not visible yet."""
    return output / HIDDEN / "staged"


def stage(
    output: Place, token: str, tables: Iterable[tuple[str, pa.Table]]
) -> tuple[tuple[str, Part], ...]:
    """Keeps tables, each with the folder that its rows will be in, in one hidden object, durable.

    The tables have the result's columns and `row`.
    """
    parts = []
    with io.BytesIO() as buffer:
        options = pa.ipc.IpcWriteOptions(compression=_COMPRESSION)
        for folder, table in tables:
            start = buffer.tell()
            with pa.ipc.new_stream(buffer, table.schema, options=options) as stream:
                stream.write_table(table)
            parts.append((folder, Part(token, start, buffer.tell() - start, 0, table.num_rows)))
        storage.put(_object(output, token), buffer.getvalue())
    return tuple(parts)


def discard(output: Place, tokens: Iterable[str]) -> None:
    """Removes what was staged under tokens that are not committed, or not needed any more."""
    for token in tokens:
        storage.remove(_object(output, token))


def leftovers(output: Place, needed: Iterable[str]) -> list[Place]:
    """What is staged, besides the objects of the tokens that are `needed`."""
    keep = {f"{token}{_PARTS}" for token in needed}
    names = storage.files_below(staged(output))
    return [staged(output) / name for name in names if name not in keep]


def publish(output: Place, group: Group) -> None:
    """Makes the group's file visible, rows in the manifest's order; fine when it is already."""
    target = output / group.name
    if storage.exists(target):
        return
    try:
        data = _parquet(_merged(output, group))
    except FileNotFoundError:
        # Somebody else has published it meanwhile, and removed the parts.
        if storage.exists(target):
            return
        raise
    if not output.is_local:
        storage.put(target, data)  # an object appears whole
        return
    whole = staged(output) / f"{uuid.uuid4().hex}{_WHOLE}"
    storage.put(whole, data)
    storage.move(whole, target)


def manifest_order(table: pa.Table) -> npt.NDArray[np.int64]:
    """The indices that sort a table by its column `row`."""
    keys = pa.table({name: ordinals(table, name) for name in (ROW_FILE, ROW_INDEX)})
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    found: npt.NDArray[np.int64] = order.to_numpy().astype(np.int64)
    return found


def ordinals(table: pa.Table, part: str) -> pa.ChunkedArray:
    """The file numbers or the indices of a table's rows."""
    chunks = [pc.struct_field(chunk, part) for chunk in table[c.ROW].chunks]
    return pa.chunked_array(chunks, ROW_STRUCT.field(part).type)


def _merged(output: Place, group: Group) -> pa.Table:
    """Raises FileNotFoundError when a part is gone."""
    paths = [_object(output, part.token).path for part in group.parts]
    starts = [part.offset for part in group.parts]
    ends = [part.offset + part.length for part in group.parts]

    def contents(fs: Any) -> list[bytes]:
        found: list[bytes] = fs.cat_ranges(paths, starts, ends, on_error="raise")
        for path, content, part in zip(paths, found, group.parts, strict=True):
            if len(content) != part.length:
                raise IncompleteError(
                    f"{path}: found {len(content)} bytes of a part, expected {part.length}"
                )
        return found

    tables = []
    for content, part in zip(storage.steadily(output, contents), group.parts, strict=True):
        with pa.ipc.open_stream(content) as stream:
            tables.append(stream.read_all().slice(part.start, part.rows))
    return pa.concat_tables(tables)


def _parquet(table: pa.Table) -> bytes:
    order = manifest_order(table)
    table = table.drop_columns([c.ROW])
    with io.BytesIO() as buffer:
        with pq.ParquetWriter(buffer, table.schema, compression=_COMPRESSION) as writer:
            for start in range(0, len(order), _ROW_GROUP):
                writer.write_table(table.take(order[start : start + _ROW_GROUP]))
        return buffer.getvalue()


def _object(output: Place, token: str) -> Place:
    return staged(output) / f"{token}{_PARTS}"
