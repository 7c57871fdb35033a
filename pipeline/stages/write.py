"""The write stage: writes finished rows to the output, each row exactly once.

A write task stages its rows in one hidden object and has the ledger commit them. When the rows of
several tasks fill a file, the ledger gives one of the tasks the group to publish. A task may be
killed at any point: Ray or the next run repeats it, and no row is lost or doubled.
"""

import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from ray.data.datasource import Datasink

from mediamill.pipeline.ladder.advice import with_advice
from mediamill.pipeline.ladder.attempts import with_results
from mediamill.pipeline.ladder.steps import Ladder, shrink
from mediamill.pipeline.ledger import hive_paths, publish
from mediamill.pipeline.ledger.ledger import Commit, CommitReply
from mediamill.pipeline.ledger.state import Counts, Rows
from mediamill.pipeline.quality.count import count_findings
from mediamill.pipeline.records import manifest_order, ordinals
from mediamill.pipeline.retry.old_rows import OldRows
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import convert_table, take_rows
from mediamill.schemas.task import Question


@dataclass(frozen=True)
class OutputRules:
    """Where results go, and in which layout.

    output: a URL. schema: of the result, with the partition columns.
    constants: the values of columns that are the same in every row, by name.
    retries: whether the run has a table of rows that it does again (see chosen_rows.py).
    changed: the job keys that such rows are made with, if they differ from the output's.
    questions: whose answers are examined; language: that they should have, None = any.
    ladder: which rows are tried again in a later pass of the run; None = all are written.
    constrained: whether answers are held to their schemas.
    """

    output: str
    schema: pa.Schema
    partition_by: tuple[str, ...]
    rows_per_file: int
    constants: Mapping[str, str]
    retries: bool = False
    changed: str | None = None
    questions: tuple[Question, ...] = ()
    language: str | None = None
    ladder: Ladder | None = None
    constrained: bool = True


class LedgerClient(Protocol):
    """The methods of `Ledger` that a write task calls."""

    def finished(self, rows: Rows) -> Rows: ...

    def commit(self, commit: Commit) -> CommitReply: ...

    def published(self, files: Mapping[str, int]) -> CommitReply: ...

    def defer(self, rows: pa.Table) -> bool: ...


class ResultDatasink(Datasink[None]):
    """Ray Data's sink for the output.

    rows_per_write: rows that Ray should gather for one task.
    count_ms: called with the milliseconds that each task has taken.
    """

    def __init__(
        self,
        rules: OutputRules,
        ledger: LedgerClient,
        rows_per_write: int,
        count_ms: Callable[[int], None] = lambda milliseconds: None,
    ) -> None:
        self._rules = rules
        self._count_ms = count_ms
        self._ledger = ledger
        self._rows_per_write = rows_per_write

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_write

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        tables = [block for block in blocks if block.num_rows]
        if tables:
            started = time.monotonic()
            write_rows(pa.concat_tables(tables), self._rules, self._ledger)
            self._count_ms(round(1000 * (time.monotonic() - started)))


def write_rows(table: pa.Table, rules: OutputRules, ledger: LedgerClient) -> None:
    """Writes the rows of a table of `parsed_schema` that are not finished yet."""
    output = storage.resolve(rules.output)
    table = _without(table, ledger.finished(_ordinals(table)))
    table = _with_results(_without_deferred(table, rules.ladder, ledger), rules)
    old = None
    if rules.retries and table.num_rows:
        old = OldRows.read(output, rules.constants[c.RUN_ID], table[c.ID])
    while table.num_rows:
        token = uuid.uuid4().hex
        reply = ledger.commit(_stage(output, token, table, rules, old))
        if not reply.finished:
            _publish(output, reply, ledger, rules.constants[c.RUN_ID])
            return
        # Another attempt of the same task has finished some rows. The others are staged again.
        publish.discard(output, [token])
        table = _without(table, reply.finished)


def _without_deferred(table: pa.Table, ladder: Ladder | None, ledger: LedgerClient) -> pa.Table:
    """Hands over the rows that are to be tried again later, and returns the others."""
    positions = [] if ladder is None else ladder.deferred(table)
    rows = table.take(pa.array(positions, pa.int64()))
    if not positions or not ledger.defer(rows):
        return table
    return _without(table, _ordinals(rows))


def _with_results(table: pa.Table, rules: OutputRules) -> pa.Table:
    """Returns the rows with the list of their attempts, and with what would help error rows."""
    codes, messages = table[c.ERROR_CODE].to_pylist(), table[c.ERROR_MESSAGE].to_pylist()
    for number, code in enumerate(codes):
        if code is not None:
            receipts, attempts = (
                table[name][number].as_py() for name in (c.RECEIPT, c.ATTEMPT_HISTORY)
            )
            halvings = shrink(attempts).bit_length() - 1
            media = table[c.MEDIA][number].as_py() if c.MEDIA in table.column_names else None
            messages[number] = with_advice(
                code,
                messages[number] or "",
                receipts or (),
                halvings,
                rules.constrained,
                len(media or (None,)),
            )
    column = table.schema.get_field_index(c.ERROR_MESSAGE)
    table = table.set_column(column, table.schema.field(column), pa.array(messages, pa.string()))
    return with_results(table, rules.constants[c.RUN_ID])


def _stage(
    output: Place, token: str, table: pa.Table, rules: OutputRules, old: OldRows | None
) -> Commit:
    """Stages the rows durably, and returns their commit."""
    answers = table.filter(pc.is_null(table[c.ERROR_CODE]))
    findings, texts = count_findings(answers, rules.questions, rules.language)
    counts = replace(_counts(table), findings=findings)
    commit = Commit(token, _ordinals(table), counts, texts=texts.counters())
    if old is None:
        return replace(commit, parts=publish.stage(output, token, _parts(table, rules)))
    again = old.has(table[c.ID])
    new = list(_parts(table.filter(pa.array(~again)), rules))
    redone = table.filter(pa.array(again))
    by_file = list(old.by_file(_with_types(redone, rules), rules.changed))
    parts = publish.stage(output, token, [*new, *by_file])
    return replace(
        commit,
        parts=parts[: len(new)],
        replacements=parts[len(new) :],
        replaced=old.counts(redone[c.ID]),
    )


def _publish(output: Place, reply: CommitReply, ledger: LedgerClient, run: str) -> None:
    """Publishes groups as long as the ledger has some for this task."""
    while reply.groups:
        files = {group.name: publish.publish(output, group, run) for group in reply.groups}
        reply = ledger.published(files)
        publish.discard(output, reply.unneeded)


def _parts(table: pa.Table, rules: OutputRules) -> Iterator[tuple[str, pa.Table]]:
    """Yields folders, sorted, with their rows in the manifest's order, at most a file's at once."""
    result, schema = _with_columns(table, rules)
    for folder, indices in sorted(_folders(table, rules.partition_by), key=itemgetter(0)):
        for start in range(0, len(indices), rules.rows_per_file):
            part = take_rows(result, indices[start : start + rules.rows_per_file])
            yield folder, convert_table(part, schema)


def _with_columns(table: pa.Table, rules: OutputRules) -> tuple[pa.Table, pa.Schema]:
    """Returns the columns of the files and `row`, and their types in the files."""
    fields = [field for field in rules.schema if field.name not in rules.partition_by]
    schema = pa.schema([*fields, pa.field(c.ROW, table[c.ROW].type)])
    return _result(table, fields, rules).append_column(c.ROW, table[c.ROW]), schema


def _with_types(table: pa.Table, rules: OutputRules) -> pa.Table:
    return convert_table(*_with_columns(table, rules))


def _folders(
    table: pa.Table, partition_by: tuple[str, ...]
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Yields the folder of each partition, with the indices of its rows in the manifest's order."""
    order = manifest_order(table)
    if not partition_by:
        yield hive_paths.folder((), ()), order
        return
    columns = (hive_paths.partition_values(table[name]) for name in partition_by)
    keys = list(zip(*columns, strict=True))
    groups = defaultdict[tuple[Any, ...], list[int]](list)
    for index in order.tolist():
        groups[keys[index]].append(index)
    for values, indices in groups.items():
        yield hive_paths.folder(partition_by, values), np.array(indices, np.int64)


def _result(table: pa.Table, fields: Sequence[pa.Field], rules: OutputRules) -> pa.Table:
    """Returns these columns of the result, with the types that they have between the stages."""
    arrays = {}
    for field in fields:
        if field.name in rules.constants:
            arrays[field.name] = pa.repeat(rules.constants[field.name], table.num_rows)
        elif field.name == c.STATUS:
            arrays[field.name] = pc.fill_null(table[c.STATUS], c.STATUS_OK)
        else:
            arrays[field.name] = table[field.name]
    return pa.Table.from_arrays([*arrays.values()], names=[*arrays])


def _ordinals(table: pa.Table) -> Rows:
    files, indices = ordinals(table)
    return {int(file): np.sort(indices[files == file]) for file in np.unique(files)}


def _without(table: pa.Table, rows: Rows) -> pa.Table:
    files, indices = ordinals(table)
    keep = np.ones(table.num_rows, bool)
    for file, removed in rows.items():
        keep &= ~((files == file) & np.isin(indices, removed))
    return table if keep.all() else table.filter(pa.array(keep))


def _counts(table: pa.Table) -> Counts:
    errors = Counter(code for code in table[c.ERROR_CODE].to_pylist() if code is not None)
    generated = table
    if c.DUPLICATE_OF in table.column_names:  # the engine made no tokens for a copy
        generated = table.filter(pc.is_null(table[c.DUPLICATE_OF]))
    return Counts(
        ok=table.num_rows - errors.total(),
        errors=dict(errors),
        prompt_tokens=_total(generated, c.PROMPT_TOKENS),
        visual_tokens=_total(generated, c.VISUAL_TOKENS),
        output_tokens=_total(generated, c.OUTPUT_TOKENS),
    )


def _total(table: pa.Table, name: str) -> int:
    return int(pc.sum(table[name]).as_py() or 0)
