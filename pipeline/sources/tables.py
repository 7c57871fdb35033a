"""Reads tables with other column names as manifests: CSV, TSV, JSONL, Parquet, and plain lists.

A relative path is relative to its table's folder. A row without an address is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.sources import uris
from mediamill.pipeline.sources.ids import Repeats, readable
from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.pipeline.sources.media_names import suffix
from mediamill.pipeline.sources.table_columns import (
    ColumnRules,
    TableColumns,
    TypeFinder,
    common_names,
    find_columns,
    fit,
)
from mediamill.pipeline.sources.text_rows import Row, csv_names, csv_rows, json_rows, list_rows
from mediamill.pipeline.sources.unit import BATCH_ROWS, Source, Unit
from mediamill.pipeline.storage import file_version, storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_types import fits_int64, is_text, plain_type
from mediamill.schemas.errors import JobError

CSV, JSONL, PARQUET, LIST = ("csv", "tsv"), ("jsonl", "ndjson"), ("parquet", "parq", "pq"), ("txt",)
TABLES = (*CSV, *JSONL, *PARQUET, *LIST)
_NO_URI = "a row without an address"
_NOT_FITTING = "a value that does not fit its column, which becomes null"


@dataclass(frozen=True)
class TableRules:
    """How tables are read.

    columns: which are id and URI. encoding: of text; None for UTF-8 or the byte order mark's.
    base: folder of relative paths; None for the folder of each table.
    """

    columns: ColumnRules = field(default_factory=ColumnRules)
    encoding: str | None = None
    base: str | None = None


def table_kind(name: str) -> str:
    """The suffix of a table's name, without .gz."""
    return suffix(name[:-3] if name.lower().endswith(".gz") else name)


def list_tables(
    root: str, files: Sequence[tuple[str, Place]], rules: TableRules, known: pa.Schema | None
) -> Source:
    """Returns the source of the rows of tables of one kind. root: what contains them, as a URL.

    files: the name and place of each. known: the schema that earlier runs have found. Raises
    JobError.
    """
    kinds = {table_kind(name) for name, _ in files}
    shown = storage.redact(root)
    if kinds <= set(PARQUET):
        return _parquet_source(root, files, rules, known)
    finder = TypeFinder()
    if kinds <= set(LIST):
        names = [c.URI]
    elif kinds <= set(CSV):
        names = common_names(csv_names(place, rules.encoding) for _, place in files)
    elif kinds <= set(JSONL):
        for _, place in files:
            for row, _ in json_rows(place, LeftOut(), rules.encoding):
                finder.add(row)
        names = finder.names
    else:
        raise JobError(
            f"{shown}: found tables of several kinds ({', '.join(sorted(kinds))}), expected one"
        )
    if not names:
        raise JobError(f"{shown}: found no row, expected some")
    columns = find_columns(names, rules.columns, shown)
    schema = known or _text_schema(columns, finder)
    single = len(files) == 1

    def unit(name: str, place: Place) -> Unit:
        base = rules.base or uris.parent(place)
        prefix = _prefix(name, single)

        def read(left_out: LeftOut) -> Iterator[pa.Table]:
            rows = _text_rows(table_kind(name), place, rules.encoding, left_out)
            return _text_tables(rows, columns, schema, base, prefix, name, left_out)

        return Unit(readable(name), file_version.file_version(place), read)

    return _source(root, (unit(*file) for file in files), schema, columns)


def _prefix(name: str, single: bool) -> str:
    """What made ids begin with, so that those of several tables differ.

    The names in the metadata of a Hugging Face folder are paths below the metadata's folder.
    """
    folder, slash, base = readable(name).rpartition("/")
    if base.startswith("metadata."):
        return f"{folder}{slash}"
    return "" if single else f"{folder}{slash}{base}:"


def _source(root: str, units: Iterable[Unit], schema: pa.Schema, columns: TableColumns) -> Source:
    settings = {"uri_column": columns.uri, "id_column": columns.id}
    given = columns.id is not None
    further = [own for own in columns.others.values() if own not in schema.names]
    notes = [*columns.notes, *(f"the new column '{name}' is not read" for name in further)]
    return Source("table", root, schema, units, settings, given, notes)


def _text_rows(kind: str, place: Place, encoding: str | None, left_out: LeftOut) -> Iterator[Row]:
    if kind in CSV:
        return csv_rows(place, left_out, encoding)
    if kind in JSONL:
        return json_rows(place, left_out, encoding)
    return list_rows(place, encoding)


def _text_schema(columns: TableColumns, finder: TypeFinder) -> pa.Schema:
    """The id is text: a later id may not be a number."""
    fields = [pa.field(c.ID, pa.string())]
    if columns.uri is not None:
        fields.append(pa.field(c.URI, pa.string()))
    for name, own in columns.others.items():
        is_chat = own in (c.PROMPT, c.SYSTEM, c.MESSAGES)
        fields.append(pa.field(own, pa.string() if is_chat else finder.type_of(name)))
    return pa.schema(fields)


def _text_tables(
    rows: Iterator[Row],
    columns: TableColumns,
    schema: pa.Schema,
    base: str,
    prefix: str,
    name: str,
    left_out: LeftOut,
) -> Iterator[pa.Table]:
    convert = _RowConverter(columns, schema, base, name, left_out)
    repeats = Repeats()
    batch: list[list[Any]] = []

    def table() -> pa.Table:
        if columns.id is None:
            keys = repeats.number([f"{prefix}{row[0]}" for row in batch])
            for row, key in zip(batch, keys, strict=True):
                row[0] = key
        values = zip(*batch, strict=True)
        arrays = [pa.array(v, field.type) for v, field in zip(values, schema, strict=True)]
        batch.clear()
        return pa.Table.from_arrays(arrays, schema=schema)

    for row, line in rows:
        values = convert(row, line)
        if values is not None:
            batch.append(values)
        if len(batch) >= BATCH_ROWS:
            yield table()
    if batch:
        yield table()


class _RowConverter:
    """Turns a row of a table into values of the manifest's schema."""

    def __init__(
        self, columns: TableColumns, schema: pa.Schema, base: str, table: str, left_out: LeftOut
    ) -> None:
        self._columns, self._base, self._table, self._left_out = columns, base, table, left_out
        own = {own: name for name, own in columns.others.items()}
        further = [f for f in schema if f.name not in (c.ID, c.URI)]
        self._others = [(own.get(f.name, f.name), f.type) for f in further]

    def __call__(self, row: Mapping[str, Any], line: int) -> list[Any] | None:
        columns = self._columns
        values: list[Any] = []
        uri: str | None = None
        if columns.uri is not None:
            address = row.get(columns.uri)
            if not isinstance(address, str) or not address.strip():
                self._left_out.add(_NO_URI, f"{self._table}, line {line}")
                return None
            address, _ = fit(address, pa.string())
            uri = uris.resolve(address, self._base)
            values.append(uri)
        key = row.get(columns.id) if columns.id else row.get(columns.uri or "")
        if key is None:
            raise JobError(f"{self._table}, line {line}: found no id, expected one in each row")
        values.insert(0, fit(key, pa.string())[0])
        for name, kind in self._others:
            value, fits = fit(row.get(name), kind)
            if not fits:
                self._left_out.add(f"{_NOT_FITTING} ('{name}')", f"{self._table}, line {line}")
            values.append(value)
        return values


# ---- Parquet, and whatever else comes as Arrow -------------------------------------------------


def _parquet_source(
    root: str, files: Sequence[tuple[str, Place]], rules: TableRules, known: pa.Schema | None
) -> Source:
    shown = storage.redact(root)
    try:
        found = pa.unify_schemas(
            [_parquet_schema(place) for _, place in files], promote_options="permissive"
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise JobError(f"{shown}: the tables have different columns: {error}") from error
    single = len(files) == 1

    def parts() -> Iterator[ArrowPart]:
        for name, place in files:
            base = rules.base or uris.parent(place)
            batches = _parquet_batches(place)
            version = file_version.file_version(place)
            yield ArrowPart(readable(name), version, batches, base, _prefix(name, single))

    return arrow_source(root, found, parts(), rules.columns, known)


def _parquet_schema(place: Place) -> pa.Schema:
    try:
        with place.fs.open(place.path, "rb") as file, pq.ParquetFile(file) as parquet:
            return parquet.schema_arrow.remove_metadata()
    except (OSError, pa.ArrowInvalid) as error:
        reason = storage.redact_text(str(error)).split("\n")[0]
        raise JobError(
            f"{storage.redact(place.url)}: the table cannot be read: {reason}"
        ) from error


def _parquet_batches(place: Place) -> Callable[[], Iterator[pa.RecordBatch]]:
    def batches() -> Iterator[pa.RecordBatch]:
        with (
            place.fs.open(place.path, "rb", cache_type="none") as file,
            pq.ParquetFile(file, buffer_size=4 << 20) as parquet,
        ):
            yield from parquet.iter_batches(BATCH_ROWS)

    return batches


@dataclass(frozen=True)
class ArrowPart:
    """A table that comes as Arrow batches. base: of relative paths. prefix: of made ids."""

    name: str
    version: str
    batches: Callable[[], Iterator[pa.RecordBatch]]
    base: str = ""
    prefix: str = ""


def arrow_source(
    root: str,
    found: pa.Schema,
    parts: Iterable[ArrowPart],
    rules: ColumnRules,
    known: pa.Schema | None,
) -> Source:
    """Returns the source of Arrow tables. found: the schema of all. Raises JobError."""
    shown = storage.redact(root)
    columns = find_columns(found.names, rules, shown)
    schema = known or _arrow_schema(found, columns, shown)

    def unit(part: ArrowPart) -> Unit:
        def read(left_out: LeftOut) -> Iterator[pa.Table]:
            return _arrow_tables(part, columns, schema, left_out)

        return Unit(part.name, part.version, read)

    return _source(root, (unit(part) for part in parts), schema, columns)


def _arrow_schema(found: pa.Schema, columns: TableColumns, shown: str) -> pa.Schema:
    fields = []
    if columns.id is None:
        fields.append(pa.field(c.ID, pa.string()))
    else:
        kind = found.field(columns.id).type
        if not (is_text(kind) or fits_int64(kind)):
            raise JobError(
                f"{shown}: column '{columns.id}' has type {kind}, expected string or int64 ids"
            )
        fields.append(pa.field(c.ID, pa.string() if is_text(kind) else pa.int64()))
    if columns.uri is not None:
        kind = found.field(columns.uri).type
        if not is_text(kind):
            hint = (
                ": it holds the media themselves: give the table to the job without this command"
                if pa.types.is_struct(kind) or pa.types.is_binary(kind)
                else ""
            )
            raise JobError(
                f"{shown}: column '{columns.uri}' has type {kind}, expected string{hint}"
            )
        fields.append(pa.field(c.URI, pa.string()))
    for name, own in columns.others.items():
        if not pa.types.is_null(found.field(name).type):
            fields.append(pa.field(own, plain_type(found.field(name).type)))
    return pa.schema(fields)


def _arrow_tables(
    part: ArrowPart, columns: TableColumns, schema: pa.Schema, left_out: LeftOut
) -> Iterator[pa.Table]:
    repeats, row = Repeats(), 0
    own = {own: name for name, own in columns.others.items()}
    for batch in part.batches():
        table = pa.Table.from_batches([batch])
        if columns.uri is not None:
            given = table[columns.uri].cast(pa.string())
            missing = [not (uri or "").strip() for uri in given.to_pylist()]
            if any(missing):
                first = row + missing.index(True)
                left_out.add(_NO_URI, f"{part.name}, row {first}", sum(missing))
                keep = pa.array([not one for one in missing])
                table, given = table.filter(keep), given.filter(keep)
        row += batch.num_rows
        if not table.num_rows:
            continue
        arrays = []
        for wanted in schema:
            if wanted.name == c.URI:
                addresses = [uris.resolve(uri, part.base) for uri in given.to_pylist()]
                arrays.append(pa.chunked_array([pa.array(addresses, pa.string())]))
            elif wanted.name == c.ID and columns.id is None:
                keys = repeats.number([f"{part.prefix}{uri}" for uri in given.to_pylist()])
                arrays.append(pa.chunked_array([pa.array(keys, pa.string())]))
            else:
                name = columns.id if wanted.name == c.ID else own.get(wanted.name)
                if name is None or name not in table.column_names:
                    arrays.append(pa.chunked_array([pa.nulls(table.num_rows, wanted.type)]))
                else:
                    arrays.append(table[name].cast(wanted.type))
        yield pa.Table.from_arrays(arrays, schema=schema)
