"""Makes columns of the folders of a manifest, such as `date=2024-01-01`.

A column is int64 if all its values are integers in canonical form when the output is begun, else
text: "01" stays text. Its type never changes afterwards.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from mediamill.pipeline.ledger import hive_paths
from mediamill.schemas.arrow_types import is_text
from mediamill.schemas.errors import JobError

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)


class HiveColumns:
    """The columns of the folders of files. where: the manifest, for messages."""

    def __init__(self, names: Iterable[str], where: str) -> None:
        """names: of the files. Raises JobError if a path has a column twice."""
        self._where = where
        self._texts: dict[str, dict[str, str | None]] = {}  # of each file, by column
        self._lost: defaultdict[str, set[str]] = defaultdict(set)
        for name in names:
            pairs = hive_paths.pairs(posixpath.dirname(name))
            self._texts[name] = dict(pairs)
            if len(self._texts[name]) < len(pairs):
                raise JobError(f"{where}: found a column twice in {name!r}, expected it once")

    def fields(self) -> list[pa.Field]:
        """Returns the columns, with the types that their values have in common."""
        by_column: defaultdict[str, set[str]] = defaultdict(set)
        for values in self._texts.values():
            for column, text in values.items():
                by_column[column] |= set() if text is None else {text}
        return [
            pa.field(column, pa.int64() if _all_integers(texts) else pa.string())
            for column, texts in by_column.items()
        ]

    def values(self, name: str, fields: Iterable[pa.Field]) -> dict[str, Any]:
        """Returns the values of a file's rows, null where there is none or it is of another type.

        fields: the columns, with the types that they have in the output.
        """
        values = {}
        for field in fields:
            text = self._texts[name].get(field.name)
            values[field.name] = _value(text, field.type)
            if text is not None and values[field.name] is None:
                self._lost[field.name].add(text)
        return values

    def notes(self) -> list[str]:
        """Returns a sentence for each column of which `values` found values of another type."""
        return [
            f"{self._where}: column '{column}' is null for the rows in {len(texts)} folders, such "
            f"as {f'{column}={min(texts)}'[:200]!r}: it had another type when the output was "
            "begun, and types never change while an output grows; a new output has it as text"
            for column, texts in self._lost.items()
        ]


def _all_integers(texts: Iterable[str]) -> bool:
    found = list(texts)
    return bool(found) and all(_INTEGER.fullmatch(text) for text in found)


def _value(text: str | None, kind: pa.DataType) -> Any:
    if text is None or is_text(kind):
        return text
    if pa.types.is_integer(kind) and _INTEGER.fullmatch(text):
        return int(text)
    return None
