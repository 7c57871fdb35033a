"""Turns tables of finished rows into Parquet files of the output, each row once.

A write task stages its files under hidden names, has the ledger commit their rows, and gives the
files their names. A task that is killed anywhere in between is done again, by Ray or by the next
run, and nothing is lost or doubled. What makes a row finished is the ledger's knowledge.
"""

import io
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data.datasource import Datasink

from pipeline import partitions, staging, storage
from pipeline.ledger import Commit
from pipeline.ledger_state import Counts, Rows
from pipeline.records import ROW_FILE, ROW_INDEX, ROW_STRUCT
from schemas import columns as c

_COMPRESSION = "zstd"


@dataclass(frozen=True)
class OutputRules:
    """Where results go and what they say of their origin.

    schema: of the result, partition columns included. constants: columns with one value.
    """

    output: str
    schema: pa.Schema
    partition_by: tuple[str, ...]
    rows_per_file: int
    constants: Mapping[str, str]


class LedgerCalls(Protocol):
    """How a write task reaches the ledger; see there."""

    def taken(self, rows: Rows) -> Rows: ...

    def commit(self, commit: Commit) -> Rows: ...


class ResultDatasink(Datasink[None]):
    """Ray Data's view of the output. rows_per_write: rows that Ray should gather for one task."""

    def __init__(self, rules: OutputRules, ledger: LedgerCalls, rows_per_write: int) -> None:
        self._rules = rules
        self._ledger = ledger
        self._rows_per_write = rows_per_write

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_write

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        tables = [block for block in blocks if block.num_rows]
        if tables:
            write_rows(pa.concat_tables(tables), self._rules, self._ledger)


def write_rows(table: pa.Table, rules: OutputRules, ledger: LedgerCalls) -> None:
    """Writes those rows of a table of `parsed_schema` that are not finished yet."""
    output = storage.resolve(rules.output)
    table = _without(table, ledger.taken(_ordinals(table)))
    while table.num_rows:
        token = uuid.uuid4().hex
        names = []
        for name, part in _files(table, rules):
            staging.stage(output, token, name, _parquet(part))
            names.append(name)
        taken = ledger.commit(Commit(token, _ordinals(table), _counts(table)))
        if not taken:
            staging.publish(output, token, names)
            return
        # Another try of the same task was faster: what it has not, is staged again.
        staging.discard(output, token)
        table = _without(table, taken)


def _files(table: pa.Table, rules: OutputRules) -> Iterator[tuple[str, pa.Table]]:
    """Name and rows of each file, rows in the manifest's order.

    Names follow from the first row, which is in no other file, so that they never meet.
    """
    result = _result(table, rules)
    inside = [name for name in rules.schema.names if name not in rules.partition_by]
    for values, indices in _groups(table, rules.partition_by):
        folder = partitions.folder(rules.partition_by, values)
        for start in range(0, len(indices), rules.rows_per_file):
            chosen = indices[start : start + rules.rows_per_file]
            row = table[c.ROW][int(chosen[0])].as_py()
            name = f"part-{row[ROW_FILE]:05}-{row[ROW_INDEX]:010}.parquet"
            yield f"{folder}/{name}" if folder else name, result.take(chosen).select(inside)


def _groups(
    table: pa.Table, partition_by: tuple[str, ...]
) -> Iterator[tuple[tuple[Any, ...], "np.ndarray[Any, np.dtype[np.int64]]"]]:
    """Values of the partition columns, and the rows that have them, in the manifest's order."""
    order = pc.sort_indices(
        pa.table({"f": _ordinal(table, ROW_FILE), "i": _ordinal(table, ROW_INDEX)}),
        [("f", "ascending"), ("i", "ascending")],
    ).to_numpy()
    if not partition_by:
        yield (), order
        return
    rows = zip(*(table[name].to_pylist() for name in partition_by), strict=True)
    keys = list(rows)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index in order.tolist():
        groups.setdefault(keys[index], []).append(index)
    for values, indices in groups.items():
        yield values, np.array(indices, np.int64)


def _result(table: pa.Table, rules: OutputRules) -> pa.Table:
    """The columns of the result, in its order and types."""
    arrays = []
    for field in rules.schema:
        if field.name in rules.constants:
            arrays.append(pa.repeat(rules.constants[field.name], table.num_rows))
        elif field.name == c.STATUS:
            arrays.append(pc.fill_null(table[c.STATUS], c.STATUS_OK))
        else:
            arrays.append(table[field.name].cast(field.type))
    return pa.Table.from_arrays(arrays, schema=rules.schema)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=_COMPRESSION)
    return buffer.getvalue()


def _ordinal(table: pa.Table, part: str) -> pa.ChunkedArray:
    chunks = [pc.struct_field(chunk, part) for chunk in table[c.ROW].chunks]
    return pa.chunked_array(chunks, ROW_STRUCT.field(part).type)


def _ordinals(table: pa.Table) -> Rows:
    files = _ordinal(table, ROW_FILE).to_numpy()
    indices = _ordinal(table, ROW_INDEX).to_numpy()
    return {int(file): np.sort(indices[files == file]) for file in np.unique(files)}


def _without(table: pa.Table, taken: Rows) -> pa.Table:
    files = _ordinal(table, ROW_FILE).to_numpy()
    indices = _ordinal(table, ROW_INDEX).to_numpy()
    keep = np.ones(table.num_rows, bool)
    for file, gone in taken.items():
        keep &= ~((files == file) & np.isin(indices, gone))
    return table if keep.all() else table.filter(pa.array(keep))


def _counts(table: pa.Table) -> Counts:
    errors = Counter(code for code in table[c.ERROR_CODE].to_pylist() if code is not None)
    return Counts(
        ok=table.num_rows - errors.total(),
        errors=dict(errors),
        prompt_tokens=_total(table, c.PROMPT_TOKENS),
        visual_tokens=_total(table, c.VISUAL_TOKENS),
        output_tokens=_total(table, c.OUTPUT_TOKENS),
    )


def _total(table: pa.Table, name: str) -> int:
    return int(pc.sum(table[name]).as_py() or 0)
