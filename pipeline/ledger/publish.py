"""Turns staged rows into visible files: a write task's rows wait in one hidden object, folder after
folder, until a group takes parts of many such objects together into one Parquet file.

Publishing may be cut off at any instant and done again by anyone: a file's name appears with all
of its content or not at all, and the parts are there until the ledger knows that it did. Which
parts form a group is the ledger's decision.
"""

import io
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.log import HIDDEN
from mediamill.pipeline.ledger.state import Group, Part
from mediamill.pipeline.records import ROW_FILE, ROW_INDEX, ROW_STRUCT
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.retries import IncompleteError
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c

_COMPRESSION = "zstd"
_PLAIN_BYTES = 32 * 1024  # a smaller part is not compressed: that takes 25 times as long to read
_GAP_BYTES = 64 * 1024  # between parts of an object that one request still reads together
_ROW_GROUP = 65_536  # rows; longer ones could have more text than 32-bit offsets reach
# Readers that take every *.parquet below a folder must not see staged objects either.
_PARTS, _WHOLE = ".parts", ".whole"

Contents = Mapping[tuple[str, int], memoryview]  # of parts, by token and offset


class _Span(NamedTuple):
    """Bytes of one staged object, with the parts that lie in them."""

    token: str
    start: int
    stop: int
    parts: tuple[Part, ...]


def staged(output: Place) -> Place:
    """The hidden folder of all that is not visible yet."""
    return output / HIDDEN / "staged"


def visible_files(output: Place) -> list[str]:
    """The names of the files that readers see, sorted."""
    names = storage.list_files(output)
    return [name for name in names if not name.startswith(HIDDEN) and name.endswith(".parquet")]


def stage(
    output: Place, token: str, tables: Iterable[tuple[str, pa.Table]]
) -> tuple[tuple[str, Part], ...]:
    """Keeps tables, each with the folder that its rows will be in, in one hidden object, durable.

    The tables have the result's columns and `row`. Those whose folders are neighbours should be so
    too: they are read together.
    """
    parts = []
    with io.BytesIO() as buffer:
        for folder, table in tables:
            start = buffer.tell()
            packed = None if table.nbytes < _PLAIN_BYTES else _COMPRESSION
            options = pa.ipc.IpcWriteOptions(compression=packed)
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
    names = storage.list_files(staged(output))
    return [staged(output) / name for name in names if name not in keep]


def read_parts(output: Place, groups: Iterable[Group]) -> Contents:
    """What the groups are made of, in few requests. Parts that are gone are left out."""
    spans = _spans(groups)
    found: dict[int, bytes | None] = {}

    def contents(fs: Any) -> None:
        """Reads what is not there yet: one range that fails does not cost the others."""
        left = [index for index in range(len(spans)) if index not in found]
        paths = [_object(output, spans[index].token).path for index in left]
        starts = [spans[index].start for index in left]
        stops = [spans[index].stop for index in left]
        failed: Exception | None = None
        answers = fs.cat_ranges(paths, starts, stops, on_error="return")
        for index, path, answer in zip(left, paths, answers, strict=True):
            span = spans[index]
            if isinstance(answer, FileNotFoundError):
                found[index] = None
            elif isinstance(answer, Exception):
                failed = answer
            elif len(answer) != span.stop - span.start:
                failed = IncompleteError(
                    f"{path}: found {len(answer)} bytes of its parts, expected "
                    f"{span.stop - span.start}"
                )
            else:
                found[index] = answer
        if failed is not None:
            raise failed

    if spans:
        storage.with_retries(output, contents)
    cut: dict[tuple[str, int], memoryview] = {}
    for index, span in enumerate(spans):
        data = found[index]
        if data is not None:
            whole = memoryview(data)
            for part in span.parts:
                start = part.offset - span.start
                cut[part.token, part.offset] = whole[start : start + part.length]
    return cut


def publish(output: Place, group: Group, contents: Contents | None = None) -> None:
    """Makes the group's file visible, rows in the manifest's order; fine when it is already.

    contents: of its parts and maybe of others, where they are read already.
    """
    target = output / group.name
    if storage.exists(target):
        return
    try:
        data = _parquet(_merged(group, contents or read_parts(output, [group])))
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


def _spans(groups: Iterable[Group]) -> list[_Span]:
    """The parts of the groups, neighbours together."""
    # A part that two groups share is read once.
    parts = {(part.token, part.offset): part for group in groups for part in group.parts}
    spans: list[list[Part]] = []
    for part in (parts[key] for key in sorted(parts)):
        last = spans[-1][-1] if spans else None
        if (
            last is None
            or last.token != part.token
            or part.offset - (last.offset + last.length) > _GAP_BYTES
        ):
            spans.append([])
        spans[-1].append(part)
    return [_span(found) for found in spans]


def _span(parts: Sequence[Part]) -> _Span:
    first, last = parts[0], parts[-1]
    return _Span(first.token, first.offset, last.offset + last.length, tuple(parts))


def _merged(group: Group, contents: Contents) -> pa.Table:
    """Raises FileNotFoundError when a part is gone."""
    tables = []
    for part in group.parts:
        content = contents.get((part.token, part.offset))
        if content is None:
            raise FileNotFoundError(f"{part.token}: the staged object is gone")
        with pa.ipc.open_stream(pa.py_buffer(content)) as stream:
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
