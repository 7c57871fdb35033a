"""Checks the JSON schema of a job, and parses answers into the values of its columns.

Schemas come from the job file and answers from a model: a wrong schema raises JobError, and a wrong
answer gives the reason why it is wrong.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jsonschema
import pyarrow as pa
from referencing import Registry

from mediamill.schemas.errors import JobError
from mediamill.schemas.json_columns import Column, columns_of
from mediamill.schemas.json_normalize import UnsupportedSchemaError, normalize_schema
from mediamill.schemas.strict_json import parse_strict

_MAX_SCHEMA, _MAX_ANSWER = 100_000, 1_000_000  # characters
_MAX_DEPTH = 64  # nested objects and lists, in schemas and answers
_MAX_NAME = 100
_MAX_SHOWN = 200

Values = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerSchema:
    """A JSON schema of an object.

    text: the normalized schema (json_normalize.py).
    fields: a column for each property of the object, in the schema's order: string, int64, double
        and boolean, lists and structs of them; a value that may have several types is a string
        with its JSON. All are nullable.
    """

    text: str
    fields: tuple[pa.Field, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str = "json_schema") -> Self:
        """Checks and normalizes a schema. Raises JobError, naming `where`, for a wrong one."""
        try:
            text = json.dumps(given, allow_nan=False, ensure_ascii=False)
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise JobError(f"{where}: found what JSON cannot hold: {_brief(error)}") from None
        if len(text) > _MAX_SCHEMA:
            raise JobError(f"{where}: found {len(text)} characters, expected at most {_MAX_SCHEMA}")
        if _nests_deeper(text, _MAX_DEPTH):
            raise JobError(f"{where}: found more than {_MAX_DEPTH} levels, expected fewer")
        # YAML may have given values that JSON lacks, such as keys that are numbers.
        schema = json.loads(text)
        try:
            _validator_class(schema, where).check_schema(schema)
        except jsonschema.SchemaError as error:
            place = ".".join([where, *map(str, error.absolute_path)])
            raise JobError(f"{place}: is no JSON schema: {_brief(error.message)}") from None
        try:
            schema = normalize_schema(schema)
        except UnsupportedSchemaError as error:
            raise JobError(f"{where}{error}") from None
        columns = columns_of(schema)
        if not columns:
            raise JobError(
                f"{where}: found no object with properties at its top, expected type: object and "
                "properties: each property is a column"
            )
        for name, _ in columns:
            if not name or len(name) > _MAX_NAME or not name.isprintable():
                raise JobError(
                    f"{where}.properties: found the name {name[:_MAX_NAME]!r}, expected 1 to "
                    f"{_MAX_NAME} printable characters: it names a column"
                )
        text = json.dumps(schema, ensure_ascii=False)
        return cls(text, tuple(pa.field(name, column.type) for name, column in columns))

    def parse(self, text: str) -> tuple[Values, str | None]:
        """Returns the values of the fields and None, or no values and the reason.

        Strict: NaN, numbers beyond int64 or double, repeated keys and text beside the object are
        refused.
        """
        if len(text) > _MAX_ANSWER:
            return {}, f"found {len(text)} characters, expected at most {_MAX_ANSWER}"
        if _nests_deeper(text, _MAX_DEPTH):
            return {}, f"found more than {_MAX_DEPTH} levels, expected fewer"
        try:
            answer = parse_strict(text)
        except (ValueError, RecursionError) as error:
            return {}, f"is no JSON: {_brief(error)}"
        try:
            problem = jsonschema.exceptions.best_match(_validator(self.text).iter_errors(answer))
            if problem is not None:
                return {}, f"{_brief(problem.json_path)}: {_brief(problem.message)}"
            return {
                name: column.convert(answer[name]) if name in answer else None
                for name, column in _columns(self.text)
            }, None
        except Exception as error:  # noqa: BLE001 - no answer may end a job
            return {}, f"cannot be read: {_brief(error)}"


def _validator_class(schema: Any, where: str) -> Any:
    """Returns the validator class of the draft that the schema names."""
    if not isinstance(schema, dict):
        raise JobError(f"{where}: found no mapping, expected a JSON schema of an object")
    draft = schema.get("$schema")
    if draft is None:
        return jsonschema.Draft202012Validator
    validator_class = jsonschema.validators.validator_for(schema, default=None)
    if validator_class is None:
        raise JobError(
            f"{where}.$schema: found {_brief(draft)}, expected a published draft of JSON Schema, "
            "or none"
        )
    return validator_class


@functools.lru_cache(64)
def _validator(text: str) -> Any:
    """Returns the validator of a checked schema. It fetches nothing: the registry is empty."""
    schema = json.loads(text)
    default = jsonschema.Draft202012Validator
    return jsonschema.validators.validator_for(schema, default=default)(schema, registry=Registry())


@functools.lru_cache(64)
def _columns(text: str) -> tuple[tuple[str, Column], ...]:
    return columns_of(json.loads(text))


def _nests_deeper(text: str, levels: int) -> bool:
    """Whether JSON text nests lists and objects deeper than `levels`."""
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


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."
