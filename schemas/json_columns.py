"""Derives the Arrow columns of a JSON schema, and converts values to their types.

The schema is a normalized one (json_normalize.py), and the values were validated against it. All
keywords of a schema only narrow its values, so that `type` decides the column.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mediamill.schemas.json_normalize import resolve_reference

_PLAIN: dict[str, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_TYPE_NAMES = {
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
    """The Arrow type of the values of a schema.

    is_json: values are stored as JSON text, because they may have several types.
    item: the column of the items of a list.
    parts: names and columns of the fields of a struct.
    """

    type: pa.DataType
    is_json: bool = False
    item: "Column | None" = None
    parts: tuple[tuple[str, "Column"], ...] = ()

    def convert(self, value: Any) -> Any:
        """Returns a value as pyarrow takes it. Raises ValueError when it does not fit exactly."""
        if value is None:
            return None
        if self.is_json:
            return _checked_text(json.dumps(value, ensure_ascii=False))
        if self.item is not None:
            return [self.item.convert(element) for element in value]
        if self.parts:
            return {
                name: part.convert(value[name]) if name in value else None
                for name, part in self.parts
            }
        if self.type == pa.string():
            return _checked_text(value)
        if self.type == pa.int64():
            number = int(value)
            if not -(2**63) <= number < 2**63:
                raise ValueError(f"found {str(number)[:40]}, expected a number within 64 bits")
            return number
        return float(value) if self.type == pa.float64() else bool(value)


JSON = Column(pa.string(), is_json=True)


def columns_of(schema: Mapping[str, Any]) -> tuple[tuple[str, Column], ...]:
    """Returns a column for each property of the object that a schema describes.

    The result is empty when the schema is not one of an object.
    """
    top, _ = _resolved(schema, schema, ())
    if top.get("type") != "object":
        return ()
    return tuple(
        (name, _column(member, schema, ())) for name, member in top.get("properties", {}).items()
    )


class _RecursiveSchemaError(Exception):
    """A schema contains itself."""


def _column(schema: Any, root: Mapping[str, Any], references: tuple[str, ...]) -> Column:
    """references: those that led to this schema; none for a property of the top object."""
    try:
        return _plain_column(schema, root, references)
    except _RecursiveSchemaError:
        if references:
            raise
        return JSON


def _plain_column(schema: Any, root: Mapping[str, Any], references: tuple[str, ...]) -> Column:
    schema, references = _resolved(schema, root, references)
    types = _type_names(schema) - {"null"}
    if not types and (branches := schema.get("anyOf", schema.get("oneOf"))):
        options = [
            _plain_column(branch, root, references)
            for branch in branches
            if not _is_null(branch, root)
        ]
        return options[0] if options and all(column == options[0] for column in options) else JSON
    if types == {"integer", "number"}:
        types = {"number"}
    if len(types) != 1:
        return JSON
    (name,) = types
    if name == "array":
        items = schema.get("items")
        if not isinstance(items, dict) or "prefixItems" in schema:
            return JSON
        item = _plain_column(items, root, references)
        return Column(pa.list_(item.type), item=item)
    if name == "object":
        closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
        if not closed or not schema.get("properties"):
            return JSON
        parts = tuple(
            (name, _plain_column(member, root, references))
            for name, member in schema["properties"].items()
        )
        return Column(pa.struct([(name, part.type) for name, part in parts]), parts=parts)
    return Column(_PLAIN[name])


def _resolved(
    schema: Any, root: Mapping[str, Any], references: tuple[str, ...]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Follows references; returns the schema and all references that led to it."""
    while isinstance(schema, dict) and "$ref" in schema:
        reference = schema["$ref"]
        if reference in references:
            raise _RecursiveSchemaError
        references = (*references, reference)
        schema = resolve_reference(reference, root)
    return (schema if isinstance(schema, dict) else {}), references


def _type_names(schema: Mapping[str, Any]) -> set[str]:
    """Returns the JSON types that a schema names; empty when it names none."""
    named = schema.get("type")
    if named is not None:
        return {named} if isinstance(named, str) else set(named)
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return {_TYPE_NAMES[type(value)] for value in values}


def _is_null(schema: Any, root: Mapping[str, Any]) -> bool:
    return _type_names(_resolved(schema, root, ())[0]) == {"null"}


def _checked_text(text: str) -> str:
    text.encode()  # raises for a lone surrogate, which JSON allows
    return text
