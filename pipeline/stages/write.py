"""Turns tables of finished rows into files of the output, each row once.

A write task stages its rows in one hidden object and has the ledger commit them. When they fill
files with what other tasks have committed, the ledger says which, and the task makes those visible.
A task that is killed anywhere in between is done again, by Ray or by the next run, and nothing is
lost or doubled. What makes a row finished is the ledger's knowledge.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data.datasource import Datasink

from mediamill.pipeline.ledger import hive_paths, publish
from mediamill.pipeline.ledger.ledger import Commit, CommitReply
from mediamill.pipeline.ledger.publish import ordinals
from mediamill.pipeline.ledger.state import Counts, Rows
from mediamill.pipeline.records import ROW_FILE, ROW_INDEX
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c


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

    def commit(self, commit: Commit) -> CommitReply: ...

    def published(self, names: Sequence[str]) -> CommitReply: ...


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
        parts = publish.stage(output, token, _parts(table, rules))
        answer = ledger.commit(Commit(token, _ordinals(table), _counts(table), parts))
        if not answer.taken:
            _publish(output, answer, ledger)
            return
        # Another try of the same task was faster: what it has not, is staged again.
        publish.discard(output, [token])
        table = _without(table, answer.taken)


def _publish(output: Place, answer: CommitReply, ledger: LedgerCalls) -> None:
    """Makes files visible as long as the ledger has some for this task."""
    while answer.groups:
        for group in answer.groups:
            publish.publish(output, group)
        answer = ledger.published([group.name for group in answer.groups])
        publish.discard(output, answer.unneeded)


def _parts(table: pa.Table, rules: OutputRules) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each folder, in the manifest's order, and no more at once than a file has.

    Folders come in their own order.
    """
    result = _result(table, rules)
    inside = [name for name in rules.schema.names if name not in rules.partition_by]
    result = result.select(inside).append_column(c.ROW, table[c.ROW])
    groups = [
        (hive_paths.folder(rules.partition_by, values), indices)
        for values, indices in _groups(table, rules.partition_by)
    ]
    for folder, indices in sorted(groups, key=lambda group: group[0]):
        for start in range(0, len(indices), rules.rows_per_file):
            yield folder, result.take(indices[start : start + rules.rows_per_file])


def _groups(
    table: pa.Table, partition_by: tuple[str, ...]
) -> Iterator[tuple[tuple[Any, ...], "np.ndarray[Any, np.dtype[np.int64]]"]]:
    """Values of the partition columns, and the rows that have them, in the manifest's order."""
    order = publish.manifest_order(table)
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


def _ordinals(table: pa.Table) -> Rows:
    files = ordinals(table, ROW_FILE).to_numpy()
    indices = ordinals(table, ROW_INDEX).to_numpy()
    return {int(file): np.sort(indices[files == file]) for file in np.unique(files)}


def _without(table: pa.Table, taken: Rows) -> pa.Table:
    files = ordinals(table, ROW_FILE).to_numpy()
    indices = ordinals(table, ROW_INDEX).to_numpy()
    keep = np.ones(table.num_rows, bool)
    for file, gone in taken.items():
        keep &= ~((files == file) & np.isin(indices, gone))
    return table if keep.all() else table.filter(pa.array(keep))


def _counts(table: pa.Table) -> Counts:
    errors = Counter(code for code in table[c.ERROR_CODE].to_pylist() if code is not None)
    asked = table
    if c.DUPLICATE_OF in table.column_names:  # what a copy says, the engine has said once
        asked = table.filter(pc.is_null(table[c.DUPLICATE_OF]))
    return Counts(
        ok=table.num_rows - errors.total(),
        errors=dict(errors),
        prompt_tokens=_total(asked, c.PROMPT_TOKENS),
        visual_tokens=_total(asked, c.VISUAL_TOKENS),
        output_tokens=_total(asked, c.OUTPUT_TOKENS),
    )


def _total(table: pa.Table, name: str) -> int:
    return int(pc.sum(table[name]).as_py() or 0)
