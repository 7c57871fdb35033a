"""Chooses the error rows that a retry does again, and finds them in the manifest by their ids."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger import hive_paths
from mediamill.pipeline.ledger.bitmaps import Bitmap
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.ledger.state import LedgerState
from mediamill.pipeline.manifest.finished_rows import Tail, find_finished
from mediamill.pipeline.manifest.manifest import Manifest
from mediamill.pipeline.retry import chosen_rows
from mediamill.pipeline.retry.hopeless import may_succeed
from mediamill.pipeline.retry.options import Retry
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import convert_column, filter_rows, take_rows
from mediamill.schemas.conditions import parse_condition
from mediamill.schemas.errors import FAILS_AGAIN
from mediamill.schemas.result import error_counts

_BATCH_ROWS = 1024
_ALSO = "__also"  # column: whether the row meets the condition `also`
_INCOMPLETE = "incomplete"  # instead of a code: an ok row that is done again
_READERS = 8
_FILES = 64  # whose chosen rows are in memory at once


@dataclass(frozen=True)
class Choice:
    """The rows to do again.

    redo: by number of a manifest file, a bitmap of its rows. chosen, hopeless: rows by error code;
    hopeless ones are left out. gone: error rows whose ids the manifest no longer has.
    """

    redo: Mapping[int, Bitmap]
    chosen: Mapping[str, int]
    hopeless: Mapping[str, int]
    gone: int = 0

    @property
    def rows(self) -> int:
        return sum(self.chosen.values()) - self.gone

    def sentences(self) -> list[str]:
        """Says what is done again, and what is not."""
        texts = []
        if self.rows:
            texts.append(f"{_rows(self.rows)} done again ({error_counts(self.chosen)})")
        if self.hopeless:
            hopeless = sum(self.hopeless.values())
            texts.append(
                f"{_rows(hopeless)} left out ({error_counts(self.hopeless)}): nothing has changed "
                "that could make them succeed; change the files or a key (key=value), or choose "
                "them with --where"
            )
        if self.gone:
            texts.append(f"{_rows(self.gone)} left out: the manifest no longer has their ids")
        return texts or ["no error row is chosen"]


def choose(output: Place, state: LedgerState, manifest: Manifest, retry: Retry, run: str) -> Choice:
    """Reads the output's error rows and stores those that are to be done again, for the run.

    The caller holds the lease; all committed rows are visible or wait for a file to fill.
    Raises JobError for a wrong condition.
    """
    chosen: Counter[str] = Counter()
    hopeless: Counter[str] = Counter()
    id_type = manifest.schema.id_type
    read = _reader(output, state, retry)
    with (
        chosen_rows.writer(output, run, id_type) as writer,
        ThreadPoolExecutor(_READERS) as threads,
    ):
        visible = visible_files(output)
        for start in range(0, len(visible), _FILES):
            names = visible[start : start + _FILES]
            for name, tables in zip(names, threads.map(read, names), strict=True):
                for table in tables:
                    keep = _may_succeed(table, retry, hopeless)
                    table = take_rows(table, np.flatnonzero(keep))
                    if table.num_rows:
                        chosen.update(pc.fill_null(table[c.ERROR_CODE], _INCOMPLETE).to_pylist())
                        writer.write_table(_copied(table, name, id_type))
    if not chosen:
        return Choice({}, {}, hopeless)

    def read_ids(take: Callable[[pa.Array], None]) -> None:
        for ids in chosen_rows.read_ids(output, run):
            take(ids)

    tails = [Tail(file, 0) for file in manifest.files]
    found = find_finished(tails, read_ids, chosen.total())
    numbers = {file.name: number for number, file in enumerate(state.files) if file.name}
    redo = {
        numbers[name]: bitmap & state.done[numbers[name]][: bitmap.size]
        for name, bitmap in found.bitmaps.items()
    }
    return Choice(redo, chosen, hopeless, chosen.total() - found.rows)


def _reader(output: Place, state: LedgerState, retry: Retry) -> Callable[[str], list[pa.Table]]:
    """Returns the function that reads the error rows of a file that the condition chooses."""
    types = hive_paths.column_types(state.header or {})

    def read(name: str) -> list[pa.Table]:
        values = dict(hive_paths.pairs(name.rpartition("/")[0]))
        place = output / name
        with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
            schema = parquet.schema_arrow
            if c.STATUS not in schema.names or c.ID not in schema.names:
                return []  # not a file of Mediamill
            needed = [
                field.name
                for field in schema
                if field.name in (c.ID, c.STATUS, c.URI, c.MEDIA, c.DUPLICATE_OF)
                or field.name in chosen_rows.COPIED
                or field.name in f"{retry.where} {retry.also}"
            ]
            full = pa.schema([schema.field(column) for column in needed])
            for column in values.keys() - set(needed):
                full = full.append(pa.field(column, types.get(column, pa.string())))
            condition = pc.field(c.STATUS) == c.STATUS_ERROR
            if retry.where is not None:
                condition = condition & parse_condition(retry.where, full)
            if retry.also is not None:
                also = parse_condition(retry.also, full)
                condition = condition | also
            groups = range(parquet.num_row_groups)
            tables = []
            for batch in parquet.iter_batches(
                _BATCH_ROWS,
                row_groups=groups if retry.also else _groups_with_errors(parquet),
                columns=needed,
            ):
                table = pa.Table.from_batches([batch])
                for field in full:
                    if field.name not in table.column_names:
                        value = pa.scalar(values[field.name], pa.string()).cast(field.type)
                        table = table.append_column(field, pa.repeat(value, len(table)))
                table = filter_rows(table, condition)
                if retry.also is not None:
                    again = pc.is_in(table[c.ID], filter_rows(table, also)[c.ID].combine_chunks())
                    table = table.append_column(_ALSO, again)
                if table.num_rows:
                    tables.append(table)
            return tables

    return read


def _groups_with_errors(parquet: pq.ParquetFile) -> list[int]:
    """Returns the row groups that have error rows, as far as their statistics say it."""
    paths = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    column = paths.index(c.STATUS)
    groups = []
    for number in range(parquet.num_row_groups):
        statistics = parquet.metadata.row_group(number).column(column).statistics
        all_ok = (
            statistics is not None
            and statistics.has_min_max
            and statistics.min == statistics.max == c.STATUS_OK
        )
        if not all_ok:
            groups.append(number)
    return groups


def _may_succeed(table: pa.Table, retry: Retry, hopeless: Counter[str]) -> list[bool]:
    """Returns which rows are done again, and counts the others by code."""
    codes = table[c.ERROR_CODE].to_pylist()
    if retry.where is not None or retry.may_change_rows:
        return [True] * len(codes)
    names = [name for name in (c.URI, c.MEDIA, c.RUN_ID) if name in table.column_names]
    keep = []
    also = [False] * len(codes)
    if _ALSO in table.column_names:
        also = table[_ALSO].to_pylist()
    for row, code in enumerate(codes):
        if also[row]:
            keep.append(True)
            continue
        values = {name: table[name][row].as_py() for name in names} if code in FAILS_AGAIN else {}
        keep.append(code not in FAILS_AGAIN or may_succeed(code, values))
        if not keep[-1]:
            hopeless[code] += 1
    return keep


def _copied(table: pa.Table, name: str, id_type: pa.DataType) -> pa.Table:
    """Returns the rows as the table of chosen rows has them."""
    arrays: list[Any] = []
    copy = table[c.DUPLICATE_OF].is_valid() if c.DUPLICATE_OF in table.column_names else None
    for field in chosen_rows.schema(id_type):
        if field.name == chosen_rows.FILE:
            array = pa.repeat(name, len(table))
        elif field.name not in table.column_names:
            array = pa.nulls(len(table), field.type)
        else:
            array = convert_column(table[field.name], field.type)
            if copy is not None and field.name.endswith("_tokens"):
                array = pc.if_else(copy, None, array)  # the engine made none for a copy
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=chosen_rows.schema(id_type))


def _rows(number: int) -> str:
    return "1 error row is" if number == 1 else f"{number:,} error rows are"
