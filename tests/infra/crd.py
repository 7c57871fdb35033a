"""Turns a Kubernetes object and its published schema into a list of what is wrong with it.

Walks structural schemas as an API server does, and is stricter: an unknown field is wrong, where
the server would drop it in silence. CEL rules are not evaluated.
"""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_KNOWN = {
    "type", "properties", "required", "items", "additionalProperties", "enum", "pattern", "format",
    "anyOf", "nullable", "default", "description", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "x-kubernetes-int-or-string", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-validations",
    "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip
# The server prunes these for every kind by itself; CRDs only say that they are objects.
_METADATA = {"name", "generateName", "namespace", "labels", "annotations"}


def load_schema(path: Path, version: str = "v1") -> dict[str, Any]:
    """The schema of one version of a gzipped CustomResourceDefinition."""
    with gzip.open(path) as file:
        definition = yaml.CSafeLoader(file).get_single_data()  # ten times as fast as safe_load
    [schema] = [
        one["schema"]["openAPIV3Schema"]
        for one in definition["spec"]["versions"]
        if one["name"] == version
    ]
    assert isinstance(schema, dict)
    return schema


def mistakes(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """One sentence for each thing that the schema forbids."""
    unread = set(schema) - _KNOWN
    assert not unread, f"{path}: the schema says {unread}, which is not checked here"
    if value is None and schema.get("nullable"):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{path}: found {value!r}, expected a whole number or a string"
            return
    elif not _is_of(value, schema.get("type", "object")):
        yield f"{path}: found {value!r}, expected {schema.get('type')}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: found {value!r}, expected one of {schema['enum']}"
    if isinstance(value, str):
        yield from _text(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            yield f"{path}: found {value}, which is out of range"
    elif isinstance(value, list):
        yield from _list(value, schema, path)
    elif isinstance(value, dict):
        yield from _object(value, schema, path)


def _object(value: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}: lacks {name}"
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties")
    for name, inner in value.items():
        place = f"{path}.{name}"
        if name in properties:
            yield from mistakes(inner, properties[name], place)
        elif isinstance(others, dict):
            yield from mistakes(inner, others, place)
        elif path.endswith(".metadata") and not properties:
            if name not in _METADATA:
                yield f"{place}: unknown field"
        elif not (others is True or schema.get("x-kubernetes-preserve-unknown-fields")):
            yield f"{place}: unknown field"


def _list(value: list[Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield f"{path}: found {len(value)} items"
    for number, inner in enumerate(value):
        yield from mistakes(inner, schema["items"], f"{path}[{number}]")
    if schema.get("x-kubernetes-list-type") == "map":
        # A key that is left out has a default, which is the same in every item.
        names = schema["x-kubernetes-list-map-keys"]
        keys = [tuple(str(one.get(name)) for name in names) for one in value]
        if len(set(keys)) < len(keys):
            yield f"{path}: found the same {names} twice"


def _text(value: str, schema: dict[str, Any], path: str) -> Iterator[str]:
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: found {value!r}, expected a match of {schema['pattern']}"
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path}: found {len(value)} characters"


def _is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, _TYPES[kind])
