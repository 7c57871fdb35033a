"""Turns a JSON schema into the Arrow types of its values, and values into what these types hold.

The schema was checked and has no circles without an object or list in them; the values were checked
against it. All that a schema says only narrows, so that its `type` is enough.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mediamill.schemas.json_normalize import referred

_PLAIN: dict[str, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_KINDS = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


@dataclass(frozen=True)
class Column:
    """Where values of one schema are kept.

    is_json: as their JSON text, because they may be of several types. item: of a list. parts: of a
    struct.
    """

    type: pa.DataType
    is_json: bool = False
    item: "Column | None" = None
    parts: tuple[tuple[str, "Column"], ...] = ()

    def fitted(self, value: Any) -> Any:
        """A value as pyarrow takes it. Raises ValueError where it does not fit exactly."""
        if value is None:
            return None
        if self.is_json:
            return _text(json.dumps(value, ensure_ascii=False))
        if self.item is not None:
            return [self.item.fitted(one) for one in value]
        if self.parts:
            return {
                name: part.fitted(value[name]) if name in value else None
                for name, part in self.parts
            }
        if self.type == pa.string():
            return _text(value)
        if self.type == pa.int64():
            whole = int(value)
            if not -(2**63) <= whole < 2**63:
                raise ValueError(f"found {str(whole)[:40]}, expected a number within 64 bits")
            return whole
        return float(value) if self.type == pa.float64() else bool(value)


JSON = Column(pa.string(), is_json=True)


def columns(schema: Mapping[str, Any]) -> tuple[tuple[str, Column], ...]:
    """A column for each property of the object that a document describes; none where it is not
    clear that it describes one.
    """
    top, _ = _resolved(schema, schema, ())
    if top.get("type") != "object":
        return ()
    return tuple(
        (name, _column(one, schema, ())) for name, one in top.get("properties", {}).items()
    )


class _RecursiveError(Exception):
    """A schema is part of itself."""


def _column(schema: Any, root: Mapping[str, Any], way: tuple[str, ...]) -> Column:
    """way: the references that have led here; for a property of the top, none."""
    try:
        return _deep_column(schema, root, way)
    except _RecursiveError:
        if way:
            raise
        return JSON


def _deep_column(schema: Any, root: Mapping[str, Any], way: tuple[str, ...]) -> Column:
    found, way = _resolved(schema, root, way)
    kinds = _kinds(found) - {"null"}
    if not kinds and (branches := found.get("anyOf", found.get("oneOf"))):
        each = [_deep_column(one, root, way) for one in branches if not _is_null(one, root)]
        return each[0] if each and all(one == each[0] for one in each) else JSON
    if kinds == {"integer", "number"}:
        kinds = {"number"}
    if len(kinds) != 1:
        return JSON
    (kind,) = kinds
    if kind == "array":
        items = found.get("items")
        if not isinstance(items, dict) or "prefixItems" in found:
            return JSON
        item = _deep_column(items, root, way)
        return Column(pa.list_(item.type), item=item)
    if kind == "object":
        closed = found.get("additionalProperties") is False and "patternProperties" not in found
        if not closed or not found.get("properties"):
            return JSON
        parts = tuple(
            (name, _deep_column(one, root, way)) for name, one in found["properties"].items()
        )
        return Column(pa.struct([(name, part.type) for name, part in parts]), parts=parts)
    return Column(_PLAIN[kind])


def _resolved(
    schema: Any, root: Mapping[str, Any], way: tuple[str, ...]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The schema behind a reference, and the way there."""
    while isinstance(schema, dict) and "$ref" in schema:
        reference = schema["$ref"]
        if reference in way:
            raise _RecursiveError
        way = (*way, reference)
        schema = referred(reference, root)
    return (schema if isinstance(schema, dict) else {}), way


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema names; none where it names none."""
    named = schema.get("type")
    if named is not None:
        return {named} if isinstance(named, str) else set(named)
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return {_KINDS[type(value)] for value in values}


def _is_null(schema: Any, root: Mapping[str, Any]) -> bool:
    return _kinds(_resolved(schema, root, ())[0]) == {"null"}


def _text(text: str) -> str:
    text.encode()  # half of a surrogate pair is JSON, but no text
    return text
