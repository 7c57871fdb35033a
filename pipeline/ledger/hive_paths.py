"""Converts partition values to the folder names of Hive datasets, and back.

A null has Hive's own folder name, which Spark, DuckDB, Polars and pyarrow's datasets read as null;
pandas needs `read_parquet(output, partitioning=pyarrow.dataset.partitioning(flavor="hive"))` or
`dtype_backend="pyarrow"`, else pyarrow 26 refuses to unify its dictionaries. An empty string has a
folder without a value, "kind=". All of these read it as an empty string, except Spark, which has no
empty values.
"""

from collections.abc import Sequence
from urllib.parse import unquote

_NULL = "__HIVE_DEFAULT_PARTITION__"
# What Hive escapes, and blanks at the ends, which object stores and shells treat badly.
_SPECIAL = set("\"#%'*/:=?\\\x7f{}[]^") | {chr(code) for code in range(32)}


def folder(names: Sequence[str], values: Sequence[object]) -> str:
    """Returns the folder, like "date=2024-01-01/kind=a%2Fb"; "" without partition columns."""
    return "/".join(
        f"{_escaped(name)}={_text(value)}" for name, value in zip(names, values, strict=True)
    )


def values(folders: str) -> dict[str, str | None]:
    """Returns the column values of a path like "date=2024-01-01/kind=a%2Fb"; ignores others."""
    pairs = (part.partition("=") for part in folders.split("/") if "=" in part)
    return {unquote(name): None if text == _NULL else unquote(text) for name, _, text in pairs}


def _text(value: object) -> str:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return "true" if value else "false"
    return _escaped(str(value))


def _escaped(text: str) -> str:
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode()) if char in _SPECIAL else char
        for char in text
    )
