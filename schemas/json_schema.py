"""Turns a JSON schema into the typed columns of answers, and an answer into their values.

Schemas come from the job file, answers from a model: nothing that an answer says raises. It does
not know how answers are made, nor how the network is held to a schema.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jsonschema
import pyarrow as pa
from referencing import Registry

from mediamill.schemas.errors import JobError
from mediamill.schemas.json_columns import Column, columns
from mediamill.schemas.json_normalize import SchemaTypeError, normal

# Characters of a schema, and of an answer that is looked at.
_MOST_SCHEMA, _MOST_ANSWER = 100_000, 1_000_000
# Objects and lists within one another, in either.
_DEEPEST = 64
_MOST_NAME = 100
_SHOWN = 200

Values = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerSchema:
    """A JSON schema of an object. text: the schema, as json_normalize.py leaves it.

    fields: a column for each property of the object, in the schema's order: string, int64, double
        and boolean, lists and structs of them; what may be of several types is a string that holds
        its JSON. All are nullable.
    """

    text: str
    fields: tuple[pa.Field, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str = "json_schema") -> Self:
        """Raises JobError, which names `where`, for what cannot be the schema of an answer."""
        try:
            text = json.dumps(given, allow_nan=False, ensure_ascii=False)
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise JobError(f"{where}: found what JSON cannot hold: {_brief(error)}") from None
        if len(text) > _MOST_SCHEMA:
            raise JobError(
                f"{where}: found {len(text)} characters, expected at most {_MOST_SCHEMA}"
            )
        if _deeper(text, _DEEPEST):
            raise JobError(f"{where}: found more than {_DEEPEST} levels, expected fewer")
        # What YAML gives beside JSON, keys that are numbers for instance, is JSON's from here on.
        schema = json.loads(text)
        kind = _draft(schema, where)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            place = ".".join([where, *map(str, error.absolute_path)])
            raise JobError(f"{place}: is no JSON schema: {_brief(error.message)}") from None
        try:
            schema = normal(schema)
        except SchemaTypeError as error:
            raise JobError(f"{where}{error}") from None
        found = columns(schema)
        if not found:
            raise JobError(
                f"{where}: found no object with properties at its top, expected type: object and "
                "properties: each property is a column"
            )
        for name, _ in found:
            if not name or len(name) > _MOST_NAME or not name.isprintable():
                raise JobError(
                    f"{where}.properties: found the name {name[:_MOST_NAME]!r}, expected 1 to "
                    f"{_MOST_NAME} printable characters: it names a column"
                )
        text = json.dumps(schema, ensure_ascii=False)
        return cls(text, tuple(pa.field(name, column.type) for name, column in found))

    def parse(self, text: str) -> tuple[Values, str | None]:
        """The values of the fields; or none, and what is wrong with the text.

        Strict: no NaN, no number beyond int64 or double, no key twice, nothing beside the object.
        """
        if len(text) > _MOST_ANSWER:
            return {}, f"found {len(text)} characters, expected at most {_MOST_ANSWER}"
        if _deeper(text, _DEEPEST):
            return {}, f"found more than {_DEEPEST} levels, expected fewer"
        try:
            found = json.loads(
                text,
                object_pairs_hook=_once,
                parse_constant=_no_constant,
                parse_float=_finite,
            )
        except (ValueError, RecursionError) as error:
            return {}, f"is no JSON: {_brief(error)}"
        try:
            wrong = jsonschema.exceptions.best_match(_validator(self.text).iter_errors(found))
            if wrong is not None:
                return {}, f"{_brief(wrong.json_path)}: {_brief(wrong.message)}"
            return {
                name: column.fitted(found[name]) if name in found else None
                for name, column in _columns(self.text)
            }, None
        except Exception as error:  # noqa: BLE001 - an answer must not end a job, whatever it says
            return {}, f"cannot be read: {_brief(error)}"


def _draft(schema: Any, where: str) -> Any:
    """The validator's class: of the draft that the schema names."""
    if not isinstance(schema, dict):
        raise JobError(f"{where}: found no mapping, expected a JSON schema of an object")
    named = schema.get("$schema")
    kind = jsonschema.validators.validator_for(schema, default=None)
    if named is None:
        return jsonschema.Draft202012Validator
    if kind is None:
        raise JobError(
            f"{where}.$schema: found {_brief(named)}, expected a published draft of JSON Schema, "
            "or none"
        )
    return kind


@functools.lru_cache(64)
def _validator(text: str) -> Any:
    """Of a schema that was checked. It can fetch nothing: the registry holds no address."""
    schema = json.loads(text)
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema, registry=Registry())


@functools.lru_cache(64)
def _columns(text: str) -> tuple[tuple[str, Column], ...]:
    return columns(json.loads(text))


def _deeper(text: str, levels: int) -> bool:
    """Whether JSON text opens more lists and objects within one another than so many."""
    if text.count("[") + text.count("{") <= levels:
        return False
    depth, quoted, escaped = 0, False, False
    for letter in text:
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "[{":
            depth += 1
            if depth > levels:
                return True
        elif letter in "]}":
            depth -= 1
    return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"found the key {twice[:_SHOWN]!r} twice")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"found {word}")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"found {digits[:_SHOWN]}, which is beyond a double")
    return value


def _brief(what: object) -> str:
    text = str(what)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
