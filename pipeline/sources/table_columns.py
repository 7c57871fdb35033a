"""Decides which columns of a table are the id, the URI, and which further ones the manifest has."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mediamill.pipeline.sources.unit import unclash
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import MEDIA_TYPE
from mediamill.schemas.nearest import nearest

# Names that a column with the media's addresses often has, the likeliest first.
_URI_NAMES = (
    *("uri", "url", "image_url", "video_url", "media_url", "img_url", "file_name", "image_path"),
    *("video_path", "media_path", "filepath", "file_path", "filename", "path", "file", "image"),
    *("video", "media_uri", "image_uri", "video_uri", "src", "link"),
)
_MAX_INT = 2**63


@dataclass(frozen=True)
class ColumnRules:
    """uri, id: names of the columns that the user has chosen; None: found by their names."""

    uri: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class TableColumns:
    """uri, id: of the table; a None id is made from the URI, a None uri means a column `media`.

    others: from the table's names to the manifest's. notes: what was guessed, in sentences.
    """

    uri: str | None
    id: str | None
    others: Mapping[str, str]
    notes: tuple[str, ...] = ()


def find_columns(names: Sequence[str], rules: ColumnRules, shown: str) -> TableColumns:
    """Finds the columns of a table. Raises JobError, with the columns that there are."""
    notes: list[str] = []
    for option, name in (("--uri-column", rules.uri), ("--id-column", rules.id)):
        if name is not None and name not in names:
            guess = nearest(name, names)
            raise JobError(
                f"{shown}: {option} names column '{name}', the columns are: {_shown(names)}"
                + (f" (is '{guess}' meant?)" if guess else "")
            )
    uri = rules.uri
    if uri is None and c.MEDIA not in names:
        lower = {name.lower(): name for name in reversed(names)}
        hugging_face = [name for name in names if name.endswith("_file_name")]
        uri = next(
            (lower[name] for name in _URI_NAMES if name in lower), next(iter(hugging_face), None)
        )
        if uri is None:
            raise JobError(
                f"{shown}: found no column with the media's addresses, the columns are: "
                f"{_shown(names)}: name it with --uri-column"
            )
        if uri != c.URI:
            notes.append(f"the media's addresses are taken from column '{uri}'")
    key = rules.id or (c.ID if c.ID in names else None)
    if key is None and uri is None:
        raise JobError(
            f"{shown}: found no column 'id' beside 'media', the columns are: "
            f"{_shown(names)}: name it with --id-column"
        )
    others: dict[str, str] = {}
    taken = {c.ID, c.URI}
    for name in names:
        if name in (uri, key):
            continue
        wanted = f"source_{name}" if name in (c.ID, c.URI) or not name else name
        if name == c.MEDIA and uri is not None:
            wanted = "source_media"
        others[name] = unclash(wanted, taken)
        taken.add(others[name])
        if others[name] != name:
            notes.append(f"column '{name}' is named '{others[name]}' in the manifest")
    return TableColumns(uri, key, others, tuple(notes))


def _shown(names: Sequence[str]) -> str:
    text = ", ".join(names)
    text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:1000])
    return text if len(text) < 1000 else f"{text}..."


class TypeFinder:
    """Finds the Arrow type of each column of a table without types, from all its values."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            self._kinds.setdefault(name, set()).add(_kind(value))

    @property
    def names(self) -> list[str]:
        """In the order in which they came."""
        return list(self._kinds)

    def type_of(self, name: str) -> pa.DataType:
        """The narrowest type of all values; text for different ones, and for lists and objects."""
        if name == c.MEDIA:
            return MEDIA_TYPE
        kinds = self._kinds.get(name, set()) - {"null"}
        if kinds == {"bool"}:
            return pa.bool_()
        if kinds == {"int"}:
            return pa.int64()
        if kinds and kinds <= {"int", "float"}:
            return pa.float64()
        return pa.string()


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int() if -_MAX_INT <= value < _MAX_INT:
            return "int"
        case float() if math.isfinite(value):
            return "float"
        case _:
            return "text"


def fit(value: Any, kind: pa.DataType) -> tuple[Any, bool]:
    """Returns a value of the type, and whether it fits; what does not fit becomes null."""
    if value is None:
        return None, True
    found = _kind(value)
    if pa.types.is_string(kind):
        if isinstance(value, str):
            return _valid(value), True
        return _valid(json.dumps(value, ensure_ascii=False)), True
    if kind == MEDIA_TYPE:
        return _fit_media(value)
    wanted = {"bool": pa.types.is_boolean, "int": pa.types.is_int64, "float": pa.types.is_float64}
    if found in wanted and wanted[found](kind):
        return value, True
    if found == "int" and pa.types.is_float64(kind):
        return float(value), True
    return None, False


def _valid(text: str) -> str:
    """JSON may hold half of a surrogate pair, which Arrow cannot."""
    return text.encode("utf-8", "replace").decode()


def _fit_media(value: Any) -> tuple[Any, bool]:
    try:
        return pa.array([value], MEDIA_TYPE).to_pylist()[0], True
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError):
        return None, False


def common_names(tables: Iterable[Sequence[str]]) -> list[str]:
    """All names of several tables, in the order in which they come."""
    return list(dict.fromkeys(name for names in tables for name in names))
