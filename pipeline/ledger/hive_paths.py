"""Converts partition values to the folder names of Hive datasets, and back.

A null has Hive's own folder name, which Spark, DuckDB, Polars and pyarrow's datasets read as null;
pandas needs `read_parquet(output, partitioning=pyarrow.dataset.partitioning(flavor="hive"))` or
`dtype_backend="pyarrow"`, else pyarrow 26 refuses to unify its dictionaries. An empty string has a
folder without a value, "kind=". All of these read it as an empty string, except Spark, which has no
empty values.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

NULL = "__HIVE_DEFAULT_PARTITION__"
# What Hive escapes, and blanks at the ends, which object stores and shells treat badly.
_SPECIAL = set("\"#%'*/:=?\\\x7f{}[]^") | {chr(code) for code in range(32)}


def folder(names: Sequence[str], values: Sequence[object]) -> str:
    """Returns the folder, like "date=2024-01-01/kind=a%2Fb"; "" without partition columns."""
    return "/".join(
        f"{_escaped(name)}={_text(value)}" for name, value in zip(names, values, strict=True)
    )


def pairs(folders: str) -> list[tuple[str, str | None]]:
    """Returns the columns and values of a path like "date=2024-01-01/kind=a%2Fb", in its order.

    Other folders, and those without a name before the "=", are ignored.
    """
    parts = (part.partition("=") for part in folders.split("/"))
    return [
        (_unescaped(name), None if text == NULL else _unescaped(text))
        for name, sign, text in parts
        if name and sign
    ]


def column_types(header: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Returns the types of an output's partition columns; text where they are not plain.

    header: of the output's log.
    """
    plain = {str(kind): kind for kind in (pa.int64(), pa.int32(), pa.bool_(), pa.date32())}
    layout = header.get("layout", {})
    named = layout.get("columns", {})
    names = layout.get("partition_by", ())
    return {name: plain.get(named.get(name) or "", pa.string()) for name in names}


def partition_values(column: pa.ChunkedArray) -> list[object]:
    """Returns the values of a column that `folder` takes. Dates may be far beyond Python's.

    Raises UnicodeDecodeError for a text that is not UTF-8.
    """
    if not pa.types.is_date(column.type):
        values: list[object] = column.to_pylist()
        return values
    days = column.cast(pa.date32()).cast(pa.int32()).to_pylist()
    return [None if day is None else np.datetime64(day, "D") for day in days]


def _text(value: object) -> str:
    if value is None:
        return NULL
    if isinstance(value, bool):
        return "true" if value else "false"
    return _escaped(str(value))


def _escaped(text: str) -> str:
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode()) if char in _SPECIAL else char
        for char in text
    )


def _unescaped(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:  # %E9 of another encoding
        return text
