"""Normalizes the JSON schema of a job: closes objects and bounds integers.

Answers become columns. So an object that names its properties, and does not say whether it has
others, has no others; and integers without bounds are limited to those that every reader of JSON
represents exactly (RFC 8259, section 6). References may only point into the schema itself.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

# Keywords whose value is a schema, a list of schemas or a mapping to schemas. Schemas "in place"
# describe the same value as the schema that contains them; the others describe a part of it.
_ONE_IN_PLACE = ("not", "if", "then", "else")
_LIST_IN_PLACE = ("allOf", "anyOf", "oneOf")
_MAP_IN_PLACE = ("dependentSchemas",)
_ONE = (
    *("items", "additionalItems", "contains", "unevaluatedItems", "propertyNames"),
    *("additionalProperties", "unevaluatedProperties"),
)
_LIST = ("prefixItems", "items")
_MAP = ("properties", "patternProperties", "$defs", "definitions")
# References that are not plain JSON pointers.
_REFUSED = ("$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor")
# When two schemas describe one object, neither lists all of its properties.
_COMBINING = (*_ONE_IN_PLACE, "allOf", *_MAP_IN_PLACE, "unevaluatedProperties")
_MIN_INTEGER, _MAX_INTEGER = -(2**53) + 1, 2**53 - 1


class UnsupportedSchemaError(ValueError):
    """A schema that is not supported. The message begins with the place: ".$ref: ..."."""


def normalize_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a normalized copy of a valid schema.

    Raises UnsupportedSchemaError for references that leave the schema, lead nowhere or form a
    cycle.
    """
    # Only other documents could refer to the schema by its $id.
    root: dict[str, Any] = {key: value for key, value in schema.items() if key != "$id"}
    nodes = list(_walk(root, ""))
    for where, node in nodes:
        for key in (*_REFUSED, "$id"):
            if key in node:
                raise UnsupportedSchemaError(
                    f"{where}.{key}: found it, expected references by '#/...'"
                )
        if "$ref" in node:
            _check_reference(node, root, where)
    close = not any(_combines(node) for _, node in nodes)
    return {**_normalized(root, close)}


def resolve_reference(reference: str, root: Mapping[str, Any]) -> Any:
    """Returns what a JSON pointer ("#/$defs/x", RFC 6901) leads to; None if nothing is there."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    target: Any = root
    for part in reference.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
            target = target[int(key)]
        elif isinstance(target, dict) and key in target:
            target = target[key]
        else:
            return None
    return target


def _check_reference(node: Mapping[str, Any], root: Mapping[str, Any], where: str) -> None:
    """Raises UnsupportedSchemaError when a reference of the node is wrong or part of a cycle."""
    pending: list[tuple[Any, tuple[int, ...]]] = [(node, ())]
    while pending:
        at, path = pending.pop()
        if not isinstance(at, dict):
            continue
        if id(at) in path:
            raise UnsupportedSchemaError(f"{where}.$ref: leads in a circle, expected an end")
        path = (*path, id(at))
        if "$ref" in at:
            target = resolve_reference(at["$ref"], root)
            if not isinstance(target, dict | bool):
                raise UnsupportedSchemaError(
                    f"{where}.$ref: found {str(at['$ref'])[:200]!r}, expected a place in this "
                    "schema, such as '#/$defs/name'; nothing is fetched"
                )
            pending.append((target, path))
        pending += [(inner, path) for _, inner in _subschemas(at, in_place=True)]


def _subschemas(node: Mapping[str, Any], in_place: bool) -> Iterator[tuple[str, Any]]:
    """Yields the schemas within a schema, each after its place in it."""
    ones = _ONE_IN_PLACE if in_place else _ONE
    lists = _LIST_IN_PLACE if in_place else _LIST
    maps = _MAP_IN_PLACE if in_place else _MAP
    for key in ones:
        if isinstance(node.get(key), dict):
            yield f".{key}", node[key]
    for key in lists:
        if isinstance(node.get(key), list):
            yield from ((f".{key}.{i}", inner) for i, inner in enumerate(node[key]))
    for key in maps:
        if isinstance(node.get(key), dict):
            yield from ((f".{key}.{name}", inner) for name, inner in node[key].items())


def _walk(node: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every schema of a document that is an object, each after its place."""
    if isinstance(node, dict):
        yield where, node
        for in_place in (True, False):
            for place, inner in _subschemas(node, in_place):
                yield from _walk(inner, where + place)


def _combines(node: Mapping[str, Any]) -> bool:
    beside = "properties" in node and any(key in node for key in ("$ref", "anyOf", "oneOf"))
    return beside or any(key in node for key in _COMBINING)


def _normalized(node: Any, close: bool) -> Any:
    if not isinstance(node, dict):
        return node
    copy = dict(node)
    for key in (*_ONE_IN_PLACE, *_ONE):
        if isinstance(copy.get(key), dict):
            copy[key] = _normalized(copy[key], close)
    for key in (*_LIST_IN_PLACE, *_LIST):
        if isinstance(copy.get(key), list):
            copy[key] = [_normalized(inner, close) for inner in copy[key]]
    for key in (*_MAP_IN_PLACE, *_MAP):
        if isinstance(copy.get(key), dict):
            copy[key] = {name: _normalized(inner, close) for name, inner in copy[key].items()}
    if close and "properties" in copy and "patternProperties" not in copy:
        copy.setdefault("additionalProperties", False)
    if copy.get("type") == "integer" and "enum" not in copy and "const" not in copy:
        if "exclusiveMinimum" not in copy:
            copy.setdefault("minimum", _MIN_INTEGER)
        if "exclusiveMaximum" not in copy:
            copy.setdefault("maximum", _MAX_INTEGER)
    return copy
