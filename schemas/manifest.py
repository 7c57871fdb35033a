"""Turns the Arrow schema of a manifest into a ManifestSchema, or into sentences on what is wrong.

Knows columns and types only: it reads no rows, so duplicate or null ids are found elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from mediamill.schemas import columns as c
from mediamill.schemas.arrow_types import (
    can_be_a_path,
    fits_int64,
    is_list,
    is_seconds,
    is_text,
    plain_type,
)
from mediamill.schemas.errors import JobError
from mediamill.schemas.nearest import nearest

# One row's media, after `ManifestSchema.normalise`. Null seconds: from the start, to the end.
MEDIA_STRUCT = pa.struct(
    [
        pa.field(c.MEDIA_TYPE, pa.string()),
        pa.field(c.MEDIA_URI, pa.string()),
        pa.field(c.MEDIA_START_S, pa.float64()),
        pa.field(c.MEDIA_END_S, pa.float64()),
    ]
)
MEDIA_TYPE = pa.list_(MEDIA_STRUCT)

# Names with a meaning of their own are never what a misspelt column was meant to be.
_SPOKEN_FOR = {"columns": c.MANIFEST_COLUMNS, "fields": tuple(f.name for f in MEDIA_STRUCT)}
_OPTIONAL_TEXT = (c.PROMPT, c.SYSTEM, c.MESSAGES)
_MEDIA_EXPECTED = "list<struct<type: string, uri: string, start_s: double?, end_s: double?>>"


@dataclass(frozen=True)
class ManifestSchema:
    """What a manifest holds, in the types that the pipeline works with.

    id_type: pa.string() or pa.int64().
    form: which of the columns `uri` and `media` the manifest has.
    optional: which of `prompt`, `system`, `messages` it has, in that order.
    user: every further column, in the manifest's order; a dictionary type becomes its values'.
    """

    id_type: pa.DataType
    form: Literal["uri", "media"]
    optional: tuple[str, ...]
    user: tuple[pa.Field, ...]

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """All columns: id, uri or media, the optional ones, the user's."""
        media = (
            pa.field(c.URI, pa.string()) if self.form == c.URI else pa.field(c.MEDIA, MEDIA_TYPE)
        )
        texts = tuple(pa.field(name, pa.string()) for name in self.optional)
        return (pa.field(c.ID, self.id_type), media, *texts, *self.user)

    @property
    def arrow(self) -> pa.Schema:
        """The schema of a table after `normalise`."""
        return pa.schema(self.fields)

    @property
    def has_prompts(self) -> bool:
        """Whether rows may bring their own prompt or chat."""
        return c.PROMPT in self.optional or c.MESSAGES in self.optional

    def normalise(self, table: pa.Table) -> pa.Table:
        """The table's columns in this order and these types (rows untouched).

        Raises pa.ArrowInvalid when a value does not fit, which the accepted types rule out.
        """
        return table.select(self.arrow.names).cast(self.arrow)


def check_manifest_schema(schema: pa.Schema, where: str) -> ManifestSchema:
    """What the manifest `where` (a path, for the sentences) holds.

    Raises JobError, one line for each mistake, naming the file, the column, the type found and the
    type expected.
    """
    mistakes = _duplicates(schema, where)
    if not mistakes:
        mistakes = [
            *_missing(schema, where),
            *(line for field in schema for line in _wrong_type(field, where)),
            *(line for field in schema for line in _clash(field, where)),
        ]
    if mistakes:
        raise JobError("\n".join(mistakes))
    is_text_id = is_text(schema.field(c.ID).type)
    return ManifestSchema(
        id_type=pa.string() if is_text_id else pa.int64(),
        form="uri" if c.URI in schema.names else "media",
        optional=tuple(name for name in _OPTIONAL_TEXT if name in schema.names),
        user=tuple(
            pa.field(field.name, plain_type(field.type))
            for field in schema
            if field.name not in c.MANIFEST_COLUMNS
        ),
    )


def check_partition_by(manifest: ManifestSchema, partition_by: Sequence[str], where: str) -> None:
    """Whether the result can be partitioned by these columns of the manifest `where`.

    Raises JobError when a column is missing, is not the user's own or cannot be a part of a path.
    """
    user = {field.name: field.type for field in manifest.user}
    mistakes = []
    for name in partition_by:
        if name in c.RESULT_COLUMNS:
            mistakes.append(
                f"partition_by: column '{name}' is what the job writes, expected a column of the "
                f"manifest {where}{_one_of(user)}"
            )
        elif name in c.MANIFEST_COLUMNS:
            mistakes.append(
                f"partition_by: column '{name}' is read by Mediamill itself, expected one of the "
                f"manifest's further columns{_one_of(user)}"
            )
        elif name not in user:
            mistakes.append(f"{where}: partition_by names column '{name}', {_there_is(user, name)}")
        elif not can_be_a_path(user[name]):
            mistakes.append(
                f"{where}: partition_by names column '{name}' of type {user[name]}, expected a "
                "string, integer, boolean or date column"
            )
    if mistakes:
        raise JobError("\n".join(mistakes))


def check_text_column(manifest: ManifestSchema, name: str, key: str, where: str) -> None:
    """Checks that the manifest `where` has the column `name` with a text, or texts, for each row.

    key: the job's key that names the column. Raises JobError.
    """
    user = {field.name: field.type for field in manifest.user}
    if name not in user:
        raise JobError(f"{where}: {key} names column '{name}', {_there_is(user, name)}")
    column_type = user[name]
    if not is_text(column_type.value_type if is_list(column_type) else column_type):
        raise JobError(
            f"{where}: {key} names column '{name}' of type {column_type}, expected string or "
            "list<string>"
        )


def _duplicates(schema: pa.Schema, where: str) -> list[str]:
    names = schema.names
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return [f"{where}: found {names.count(n)} columns named '{n}', expected one" for n in twice]


def _missing(schema: pa.Schema, where: str) -> list[str]:
    mistakes = []
    names = schema.names
    if c.ID not in names:
        mistakes.append(f"{where}: no column 'id' (string or int64), {_there_is(names, c.ID)}")
    if c.URI not in names and c.MEDIA not in names:
        mistakes.append(
            f"{where}: no column 'uri' (string) or 'media' ({_MEDIA_EXPECTED}), "
            f"{_there_is(names, c.URI, c.MEDIA)}"
        )
    if c.URI in names and c.MEDIA in names:
        mistakes.append(
            f"{where}: found both columns 'uri' and 'media', expected only one of them: "
            "drop or rename the other"
        )
    return mistakes


def _wrong_type(field: pa.Field, where: str) -> list[str]:
    column = f"{where}: column '{field.name}'"
    if pa.types.is_null(field.type):
        return [
            f"{column} has type null (no value at all, and no type), expected a typed column: "
            "write it with a type, or drop it"
        ]
    if field.name == c.ID and not (is_text(field.type) or fits_int64(field.type)):
        return [f"{column} has type {field.type}, expected string or int64"]
    if field.name in (c.URI, *_OPTIONAL_TEXT) and not is_text(field.type):
        hint = " (the chat as JSON text)" if field.name == c.MESSAGES else ""
        return [f"{column} has type {field.type}, expected string{hint}"]
    if field.name == c.MEDIA:
        return [f"{column}{problem}" for problem in _media_problems(field.type)]
    return []


def _media_problems(found: pa.DataType) -> list[str]:
    if not is_list(found) or not pa.types.is_struct(found.value_type):
        return [f" has type {found}, expected {_MEDIA_EXPECTED}"]
    parts = {part.name: part.type for part in found.value_type}
    problems = []
    for name in (c.MEDIA_TYPE, c.MEDIA_URI):
        if name not in parts:
            there = _there_is(parts, name, kind="fields")
            problems.append(f" has no field '{name}' (string), {there}")
        elif not is_text(parts[name]):
            problems.append(f": field '{name}' has type {parts[name]}, expected string")
    for name, part in parts.items():
        if name not in _SPOKEN_FOR["fields"]:
            problems.append(f" has an unknown field '{name}', expected {_MEDIA_EXPECTED}")
        elif name in (c.MEDIA_START_S, c.MEDIA_END_S) and not is_seconds(part):
            problems.append(f": field '{name}' has type {part}, expected double (seconds)")
    return problems


def _clash(field: pa.Field, where: str) -> list[str]:
    if field.name in c.RESULT_COLUMNS:
        role = "is also a column that the job writes"
    elif field.name in c.IN_FLIGHT_COLUMNS:
        role = "is also a column that the job uses between its stages"
    else:
        return []
    return [
        f"{where}: column '{field.name}' {role}: rename it in the manifest, "
        f"for example to 'source_{field.name}'"
    ]


def _there_is(names: Iterable[str], *wanted: str, kind: str = "columns") -> str:
    there = list(names)
    unclaimed = [name for name in there if name not in _SPOKEN_FOR[kind]]
    guess = next((near for name in wanted if (near := nearest(name, unclaimed))), None)
    hint = f" (is '{guess}' meant?)" if guess else ""
    return f"the {kind} there are: {', '.join(there) or 'none'}{hint}"


def _one_of(names: dict[str, pa.DataType]) -> str:
    return f" ({', '.join(names)})" if names else " (it has none)"
