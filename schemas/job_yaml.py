"""Reads job files and `key=value` texts into values with their places, and writes YAML.

YAML means the core schema of YAML 1.2: no dates, no `yes` for true, no base 60, `1e-3` is a number.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from mediamill.schemas.errors import JobError

COMMAND_LINE = "command line"

_TAG = "tag:yaml.org,2002:"
# Tag, pattern and first characters ("" = an empty scalar) of the scalars that are not text.
_CORE_SCALARS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
)


@dataclass(frozen=True)
class LocatedValue:
    """A value and its place: "job.yaml:3" or "command line"."""

    value: object
    where: str


class _Loader(yaml.SafeLoader):
    """Resolves the core schema only."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or the core schema would read as another type."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _characters in _CORE_SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, _pattern, _characters)
_Loader.add_constructor(_TAG + "int", lambda _, node: int(node.value, 10))
_Loader.add_constructor(
    _TAG + "float", lambda _, node: float(re.sub(r"\.(?=[a-zA-Z])", "", node.value))
)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Only double quotes preserve each of the five line breaks of YAML.
    style = '"' if any(char in text for char in "\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def read_file(path: str, sections: Collection[str]) -> dict[str, LocatedValue]:
    """Returns the values of a YAML file by dotted key. sections: the names of sections.

    Raises JobError when there is no such file, when it is not YAML, or when a key is given twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise JobError(f"{path}: no such job file") from None
    except UnicodeDecodeError as error:
        raise JobError(
            f"{path}: byte {error.start} is not UTF-8, expected a YAML text file"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise JobError(f"{path}: the job file cannot be read: {reason}") from None
    loader, node = _compose(text, path)
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise JobError(f"{path}:{_line(node)}: found {_kind(node)}, expected lines of `key: value`")
    given: dict[str, LocatedValue] = {}
    for key, child, line in _entries(node, sections, path):
        where = f"{path}:{line}"
        if key in given:
            raise JobError(f"{where}: {key}: given a second time, first in {given[key].where}")
        given[key] = LocatedValue(_value(loader, child, path), where)
    return given


def parse_value(text: str, name: str) -> object:
    """Returns the value of a YAML text. Raises JobError, naming `name`, when it is not YAML."""
    loader, node = _compose(text, name)
    return None if node is None else _value(loader, node, name)


def split_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """Splits `key=value` texts. Raises JobError for a text without `=` and for a repeated key."""
    texts: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise JobError(f"{COMMAND_LINE}: found '{pair}', expected key=value")
        if key in texts:
            raise JobError(f"{COMMAND_LINE}: {key}: given a second time, expected it once")
        texts[key] = text
    return texts


def flatten(values: Mapping[str, object], sections: Collection[str]) -> dict[str, LocatedValue]:
    """Returns command-line values by dotted key; the mapping of a section becomes its keys."""
    given: dict[str, LocatedValue] = {}
    for key, value in values.items():
        if key in sections and isinstance(value, Mapping):
            for name, member in value.items():
                given[f"{key}.{name}"] = LocatedValue(member, COMMAND_LINE)
        else:
            given[key] = LocatedValue(value, COMMAND_LINE)
    return given


def dump_yaml(values: Mapping[str, object]) -> str:
    """Returns YAML in the order of `values`; `read_file` reads the same values from it."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9))


def _compose(text: str, name: str) -> tuple[_Loader, yaml.Node | None]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except (yaml.YAMLError, RecursionError) as error:
        raise _not_yaml(error, name) from None
    _refuse_repeated_keys(node, name, set())
    return loader, node


def _value(loader: _Loader, node: yaml.Node, name: str) -> object:
    try:
        value: object = loader.construct_object(node, deep=True)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _not_yaml(error, name) from None
    return value


def _entries(
    node: yaml.MappingNode, sections: Collection[str], path: str, prefix: str = ""
) -> Iterator[tuple[str, yaml.Node, int]]:
    """Yields dotted key, value node and line (from 1) of each key, also of those in sections."""
    for key_node, child in node.value:
        line = _line(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            raise JobError(f"{path}:{line}: found {_kind(key_node)} as a key, expected a name")
        key = prefix + key_node.value
        if key in sections and isinstance(child, yaml.MappingNode):
            yield from _entries(child, (), path, f"{key}.")
        elif key in sections and child.tag == _TAG + "null":
            continue  # an empty section, or one with comments only
        else:
            yield key, child, line


def _refuse_repeated_keys(node: yaml.Node | None, name: str, seen: set[int]) -> None:
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise JobError(
                        f"{name}:{_line(key)}: {key.value}: given a second time, "
                        f"first in line {lines[key.value]}"
                    )
                lines[key.value] = _line(key)
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):
            _refuse_repeated_keys(part, name, seen)


def _not_yaml(error: Exception, name: str) -> JobError:
    mark = getattr(error, "problem_mark", None)
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    if isinstance(error, RecursionError):
        problem = "nested too deeply"
    else:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    hint = ""
    if "mapping values are not allowed" in problem:
        hint = " (a text that holds ': ' needs quotes)"
    elif "'\\t'" in problem or "'@'" in problem or "'`'" in problem:
        hint = " (indent with spaces; quote a text that begins with this character)"
    elif "alphabetic or numeric" in problem or "undefined alias" in problem:
        hint = " (quote a text that begins with * or &)"
    return JobError(f"{place}: not valid YAML: {problem}{hint}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "plain text"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
