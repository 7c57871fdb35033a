"""Finds rows of an output by their id or by a condition, reading as little as its files allow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from mediamill.pipeline.export.source import Source
from mediamill.pipeline.inspect.output import Output, shown_rows
from mediamill.schemas import columns as c
from mediamill.schemas.conditions import parse_condition
from mediamill.schemas.errors import JobError
from mediamill.schemas.nearest import nearest

_FILE = "__filename"
_CANDIDATES = 4000  # ids that are compared with an unknown one
_TRIES = 3
VIDEO_ID = "video_id"


@dataclass(frozen=True)
class FoundRows:
    """rows: values by column, with those of the partitions. total: rows that match, at least.

    is_more: whether more rows match than `rows` has.
    """

    rows: list[dict[str, Any]]
    is_more: bool


def find_by_id(output: Output, text: str, limit: int) -> FoundRows:
    """Returns the rows with this id; of a video of an annotation, its windows.

    text: as it is typed; of a whole number, its digits. Raises JobError for an unknown one.
    """
    for name in (c.ID, VIDEO_ID):
        if name in output.schema.names and (value := _scalar(text, output, name)) is not None:
            rows = _find(output, pc.field(name) == value, limit)
            if rows.rows:
                return rows
    guess = _nearest_id(output, text)
    hint = f"did you mean {guess!r}?" if guess is not None else f"ids look like {_example(output)}"
    raise JobError(f"{output.url}: found no row with the id {text!r}; {hint}")


def find_where(output: Output, condition: str, limit: int) -> FoundRows:
    """Returns the first rows that meet a condition. Raises JobError for a malformed one."""
    source = Source(output.place.url)
    source.units()
    assert source.schema is not None
    return _find(output, parse_condition(condition, source.schema), limit, source.schema)


def _find(
    output: Output, condition: pc.Expression, limit: int, schema: pa.Schema | None = None
) -> FoundRows:
    for tries_left in reversed(range(_TRIES)):
        try:
            return _find_once(output, condition, limit, schema or output.schema)
        except FileNotFoundError:  # a compaction replaced it
            if not tries_left:
                raise
            output = Output(output.place.url)
    raise AssertionError


def _find_once(
    output: Output, condition: pc.Expression, limit: int, schema: pa.Schema
) -> FoundRows:
    # First the files, by the columns of the condition alone; then all columns of these files.
    names: dict[str, int] = {}
    total = 0
    for batch in _scan(_dataset(output, schema, output.names), condition, [c.ID, _FILE]):
        for name in batch.column(_FILE).to_pylist():
            if total <= limit:
                names[name] = names.get(name, 0) + 1
            total += 1
        if total > limit:
            break
    if not names:
        return FoundRows([], False)
    paths = {output.files[name].path.lstrip("/"): name for name in output.names}
    files = [paths[name.lstrip("/")] for name in names]
    rows: list[dict[str, Any]] = []
    for batch in _scan(_dataset(output, schema, files), condition, schema.names):
        rows += shown_rows(pa.Table.from_batches([batch.slice(0, limit - len(rows))]))
        if len(rows) >= limit:
            break
    return FoundRows(rows, total > limit)


def _dataset(output: Output, schema: pa.Schema, names: Iterable[str]) -> ds.Dataset:
    files = pafs.PyFileSystem(pafs.FSSpecHandler(output.place.fs))
    file_format = ds.ParquetFileFormat()
    fragments = []
    for name in names:
        expression = pc.scalar(True)
        for column, value in output.partitions_of(name).items():
            field = pc.field(column)
            if value is None:
                expression = expression & field.is_null()
            else:
                typed = pa.scalar(value, pa.string()).cast(schema.field(column).type)
                expression = expression & (field == typed)
        path = output.files[name].path
        fragments.append(file_format.make_fragment(path, files, partition_expression=expression))
    return ds.FileSystemDataset(fragments, schema, file_format, files)


def _scan(
    dataset: ds.Dataset, condition: pc.Expression, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    scanner = dataset.scanner(
        columns=columns, filter=condition, batch_size=4096, batch_readahead=2, fragment_readahead=2
    )
    return (batch for batch in scanner.to_batches() if batch.num_rows)


def _scalar(text: str, output: Output, column: str) -> pa.Scalar | None:
    kind = output.schema.field(column).type
    try:
        return pa.scalar(int(text) if pa.types.is_integer(kind) else text, kind)
    except (ValueError, OverflowError, pa.ArrowException):
        return None


def _ids(output: Output) -> Iterator[str]:
    for chunk in output.chunks([c.ID]):
        yield from (str(value) for value in chunk.table[c.ID].to_pylist())


def _nearest_id(output: Output, text: str) -> str | None:
    """The id that is most like `text`, among those that share a beginning or an end with it."""
    half = max(1, len(text) // 2)
    head, tail = text[:half].casefold(), text[-half:].casefold()
    candidates: list[str] = []
    for name in _ids(output):
        folded = name.casefold()
        if folded.startswith(head) or folded.endswith(tail):
            candidates.append(name)
            if len(candidates) > 4 * _CANDIDATES:
                candidates = _closest(text, candidates)
    return nearest(text, _closest(text, candidates))


def _closest(text: str, names: list[str]) -> list[str]:
    """Keeps the names with the most letters of `text` at their places."""

    def alike(name: str) -> int:
        forward = sum(a == b for a, b in zip(name, text, strict=False))
        return forward - abs(len(name) - len(text))

    return sorted(names, key=alike, reverse=True)[: _CANDIDATES // 20]


def _example(output: Output) -> str:
    return repr(next(_ids(output), ""))
