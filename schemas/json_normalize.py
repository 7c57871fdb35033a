"""Turns a JSON schema from a job file into one without references abroad, open ends and surprises.

Answers become columns: where an object names its properties and does not say whether it has others,
it has none; whole numbers without bounds are those that every reader of JSON keeps exactly (RFC
8259, section 6). It does not know columns.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

# Keys whose value is a schema, a list of schemas or a mapping to schemas. Those in place describe
# the very value that the schema around them does.
_ONE_IN_PLACE = ("not", "if", "then", "else")
_LIST_IN_PLACE = ("allOf", "anyOf", "oneOf")
_MAP_IN_PLACE = ("dependentSchemas",)
_ONE = (
    *("items", "additionalItems", "contains", "unevaluatedItems", "propertyNames"),
    *("additionalProperties", "unevaluatedProperties"),
)
_LIST = ("prefixItems", "items")
_MAP = ("properties", "patternProperties", "$defs", "definitions")
# References that need more than a place in the document.
_REFUSED = ("$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor")
# Where two schemas describe one object, neither knows all of its properties.
_COMBINING = (*_ONE_IN_PLACE, "allOf", *_MAP_IN_PLACE, "unevaluatedProperties")
_LEAST, _MOST = -(2**53) + 1, 2**53 - 1


class SchemaTypeError(ValueError):
    """A schema that answers cannot have. The message begins with the place: ".$ref: ..."."""


def normal(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, which is one, with what is said above written into it; a copy.

    Raises SchemaTypeError for references that leave the document, lead nowhere or go in a circle.
    """
    # A name for the whole document is only of use to others.
    root: dict[str, Any] = {key: value for key, value in schema.items() if key != "$id"}
    nodes = list(_walk(root, ""))
    for where, node in nodes:
        for key in (*_REFUSED, "$id"):
            if key in node:
                raise SchemaTypeError(f"{where}.{key}: found it, expected references by '#/...'")
        if "$ref" in node:
            _check_reference(node, root, where)
    closes = not any(_combines(node) for _, node in nodes)
    return {**_written(root, closes)}


def referred(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference within the document ("#/$defs/x", RFC 6901) leads to; None: nothing."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found: Any = root
    for part in reference.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            return None
    return found


def _check_reference(node: Mapping[str, Any], root: Mapping[str, Any], where: str) -> None:
    """Walk from the node to all that describes the same value."""
    begun: list[tuple[Any, tuple[int, ...]]] = [(node, ())]
    while begun:
        at, way = begun.pop()
        if not isinstance(at, dict):
            continue
        if id(at) in way:
            raise SchemaTypeError(f"{where}.$ref: leads in a circle, expected an end")
        way = (*way, id(at))
        if "$ref" in at:
            target = referred(at["$ref"], root)
            if not isinstance(target, dict | bool):
                raise SchemaTypeError(
                    f"{where}.$ref: found {str(at['$ref'])[:200]!r}, expected a place in this "
                    "schema, such as '#/$defs/name'; nothing is fetched"
                )
            begun.append((target, way))
        begun += [(one, way) for _, one in _inner(at, in_place=True)]


def _inner(node: Mapping[str, Any], in_place: bool) -> Iterator[tuple[str, Any]]:
    """The schemas within a schema, and where they stand in it."""
    ones = _ONE_IN_PLACE if in_place else _ONE
    lists = _LIST_IN_PLACE if in_place else _LIST
    maps = _MAP_IN_PLACE if in_place else _MAP
    for key in ones:
        if isinstance(node.get(key), dict):
            yield f".{key}", node[key]
    for key in lists:
        if isinstance(node.get(key), list):
            yield from ((f".{key}.{i}", one) for i, one in enumerate(node[key]))
    for key in maps:
        if isinstance(node.get(key), dict):
            yield from ((f".{key}.{name}", one) for name, one in node[key].items())


def _walk(node: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema of a document that is one of keys."""
    if isinstance(node, dict):
        yield where, node
        for in_place in (True, False):
            for place, one in _inner(node, in_place):
                yield from _walk(one, where + place)


def _combines(node: Mapping[str, Any]) -> bool:
    beside = "properties" in node and any(key in node for key in ("$ref", "anyOf", "oneOf"))
    return beside or any(key in node for key in _COMBINING)


def _written(node: Any, closes: bool) -> Any:
    if not isinstance(node, dict):
        return node
    found = dict(node)
    for key in (*_ONE_IN_PLACE, *_ONE):
        if isinstance(found.get(key), dict):
            found[key] = _written(found[key], closes)
    for key in (*_LIST_IN_PLACE, *_LIST):
        if isinstance(found.get(key), list):
            found[key] = [_written(one, closes) for one in found[key]]
    for key in (*_MAP_IN_PLACE, *_MAP):
        if isinstance(found.get(key), dict):
            found[key] = {name: _written(one, closes) for name, one in found[key].items()}
    if closes and "properties" in found and "patternProperties" not in found:
        found.setdefault("additionalProperties", False)
    if found.get("type") == "integer" and "enum" not in found and "const" not in found:
        if "exclusiveMinimum" not in found:
            found.setdefault("minimum", _LEAST)
        if "exclusiveMaximum" not in found:
            found.setdefault("maximum", _MOST)
    return found
