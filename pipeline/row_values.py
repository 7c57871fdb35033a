"""Reads the few values of a manifest's rows that a job needs, value by value.

All other columns stay Arrow: their values may have no Python object (a date beyond the year 9999),
or be broken (a text that is not UTF-8), which matters to nobody.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mediamill.pipeline.records import RowFailure, failure_columns, failures, replace_columns
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.manifest import ManifestSchema


def read_columns(manifest: ManifestSchema) -> list[str]:
    """Returns the columns that all jobs read, except the id."""
    return [manifest.form, *manifest.optional]


def row_values(table: pa.Table, number: int, columns: Sequence[str]) -> dict[str, Any]:
    """Returns values of a row by column. Raises RowError for one that cannot be read."""
    return {name: _value(table[name][number], name) for name in columns}


def with_unreadable_values(table: pa.Table, manifest: ManifestSchema) -> pa.Table:
    """Returns a table of `read_schema` in which rows with unreadable values are error rows.

    Later stages read no values of error rows. The values stay in their columns as they are.
    """
    found: dict[int, RowFailure] = {}
    for name in read_columns(manifest):
        start = 0
        for chunk in table[name].chunks:
            if not _is_valid(chunk):
                for index in range(len(chunk)):
                    try:
                        _value(chunk[index], name)
                    except RowError as error:
                        found.setdefault(start + index, RowFailure.of(error))
            start += len(chunk)
    if not found:
        return table
    row_failures = [failure or found.get(number) for number, failure in enumerate(failures(table))]
    return replace_columns(table, failure_columns(row_failures), table.schema)


def _is_valid(chunk: pa.Array) -> bool:
    try:
        chunk.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _value(scalar: pa.Scalar, name: str) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        is_address = name in (c.URI, c.MEDIA)
        raise RowError(
            ErrorCode.FETCH_NOT_FOUND if is_address else ErrorCode.PROMPT_INVALID,
            f"{name}: found a text that is not UTF-8 (byte 0x{error.object[error.start]:02x} at "
            f"{error.start}), expected UTF-8",
        ) from error
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise RowError(
            ErrorCode.PROMPT_INVALID, f"{name}: found a value that cannot be read ({error})"
        ) from error
