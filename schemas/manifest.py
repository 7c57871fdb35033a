"""Checks the Arrow schema of a manifest, and describes its columns as a ManifestSchema.

Reads no rows: duplicate and null ids are found in pipeline/manifest/unique_ids.py.
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
from mediamill.schemas.media_column import (
    MEDIA_BYTES_FIELD,
    find_media_column,
    is_binary,
    is_single,
    unpack,
)
from mediamill.schemas.nearest import nearest

# One medium of a row, after `ManifestSchema.normalize`. Null start_s and end_s mean the start and
# the end of the medium.
MEDIA_STRUCT = pa.struct(
    [
        pa.field(c.MEDIA_TYPE, pa.string()),
        pa.field(c.MEDIA_URI, pa.string()),
        pa.field(c.MEDIA_START_S, pa.float64()),
        pa.field(c.MEDIA_END_S, pa.float64()),
    ]
)
MEDIA_TYPE = pa.list_(MEDIA_STRUCT)

# Reserved names: never suggested for a misspelt column.
_RESERVED = {"columns": c.MANIFEST_COLUMNS, "fields": tuple(f.name for f in MEDIA_STRUCT)}
_OPTIONAL_TEXT = (c.PROMPT, c.SYSTEM, c.MESSAGES)
_MEDIA_EXPECTED = "list<struct<type: string, uri: string, start_s: double?, end_s: double?>>"


@dataclass(frozen=True)
class ManifestSchema:
    """The columns of a manifest, in the types that the pipeline works with.

    id_type: pa.string() or pa.int64().
    form: which of the columns `uri` and `media` the manifest has.
    optional: which of `prompt`, `system`, `messages` it has, in that order.
    user: all further columns, in the manifest's order. A dictionary column has the type of its
        values.
    media_column: the column that holds the media themselves, which becomes `form` and MEDIA_BYTES
        between the stages; None if the manifest names them.
    """

    id_type: pa.DataType
    form: Literal["uri", "media"]
    optional: tuple[str, ...]
    user: tuple[pa.Field, ...]
    media_column: str | None = None

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """All columns: id, uri or media, the optional ones, the user's."""
        media = (
            pa.field(c.URI, pa.string()) if self.form == c.URI else pa.field(c.MEDIA, MEDIA_TYPE)
        )
        texts = tuple(pa.field(name, pa.string()) for name in self.optional)
        data = () if self.media_column is None else (MEDIA_BYTES_FIELD,)
        return (pa.field(c.ID, self.id_type), media, *texts, *self.user, *data)

    @property
    def arrow(self) -> pa.Schema:
        """The schema of a table after `normalize`."""
        return pa.schema(self.fields)

    @property
    def has_prompts(self) -> bool:
        """Whether rows may have their own prompt or chat."""
        return c.PROMPT in self.optional or c.MESSAGES in self.optional

    def normalize(self, table: pa.Table) -> pa.Table:
        """Returns the table with the columns of `arrow`, in that order and of these types.

        Raises pa.ArrowInvalid when a value does not fit, which the accepted types rule out.
        """
        if self.media_column is not None:
            table = unpack(table, self.media_column, self.form, MEDIA_TYPE)
        return table.select(self.arrow.names).cast(self.arrow)


def check_manifest_schema(
    schema: pa.Schema, where: str, media_column: str | None = None
) -> ManifestSchema:
    """Checks the columns of a manifest; returns its schema. where: its path, for error messages.

    media_column: the job's key of this name.
    Raises JobError, with one line for each mistake: the file, the column, the type found and the
    type expected.
    """
    mistakes = _duplicate_columns(schema, where)
    in_table = None
    if not mistakes:
        in_table = find_media_column(schema, media_column, where)
        mistakes = [
            *_missing_columns(schema, where, in_table),
            *(line for field in schema for line in _wrong_type(field, where)),
            *(line for field in schema for line in _name_clash(field, where)),
        ]
    if mistakes:
        raise JobError("\n".join(mistakes))
    is_text_id = is_text(schema.field(c.ID).type)
    return ManifestSchema(
        id_type=pa.string() if is_text_id else pa.int64(),
        form="uri" if _has_one_medium(schema, in_table) else "media",
        optional=tuple(name for name in _OPTIONAL_TEXT if name in schema.names),
        user=tuple(
            pa.field(field.name, plain_type(field.type))
            for field in schema
            if field.name not in c.MANIFEST_COLUMNS and field.name != in_table
        ),
        media_column=in_table,
    )


def _has_one_medium(schema: pa.Schema, in_table: str | None) -> bool:
    return c.URI in schema.names if in_table is None else is_single(schema, in_table)


def check_partition_by(manifest: ManifestSchema, partition_by: Sequence[str], where: str) -> None:
    """Checks that the result can be partitioned by these columns of the manifest `where`.

    Raises JobError if a column is missing, is not one of the user's, or cannot be a part of a path.
    """
    user = {field.name: field.type for field in manifest.user}
    mistakes = []
    for name in partition_by:
        if name in c.RESULT_COLUMNS:
            mistakes.append(
                f"partition_by: column '{name}' is what the job writes, expected a column of the "
                f"manifest {where}{_in_parentheses(user)}"
            )
        elif name in c.MANIFEST_COLUMNS:
            mistakes.append(
                f"partition_by: column '{name}' is read by Mediamill itself, expected one of the "
                f"manifest's further columns{_in_parentheses(user)}"
            )
        elif name not in user:
            mistakes.append(f"{where}: partition_by names column '{name}', {_existing(user, name)}")
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
        raise JobError(f"{where}: {key} names column '{name}', {_existing(user, name)}")
    column_type = user[name]
    if not is_text(column_type.value_type if is_list(column_type) else column_type):
        raise JobError(
            f"{where}: {key} names column '{name}' of type {column_type}, expected string or "
            "list<string>"
        )


def _duplicate_columns(schema: pa.Schema, where: str) -> list[str]:
    names = schema.names
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return [f"{where}: found {names.count(n)} columns named '{n}', expected one" for n in repeated]


def _missing_columns(schema: pa.Schema, where: str, in_table: str | None) -> list[str]:
    mistakes = []
    names = schema.names
    if c.ID not in names:
        mistakes.append(f"{where}: no column 'id' (string or int64), {_existing(names, c.ID)}")
    if c.URI not in names and c.MEDIA not in names and in_table is None:
        mistakes.append(
            f"{where}: no column 'uri' (string) or 'media' ({_MEDIA_EXPECTED}), "
            f"{_existing(names, c.URI, c.MEDIA)}"
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


def _media_problems(media_type: pa.DataType) -> list[str]:
    if not is_list(media_type) or not pa.types.is_struct(media_type.value_type):
        return [f" has type {media_type}, expected {_MEDIA_EXPECTED}"]
    fields = {field.name: field.type for field in media_type.value_type}
    problems = []
    for name in (c.MEDIA_TYPE, c.MEDIA_URI):
        if name not in fields:
            available = _existing(fields, name, kind="fields")
            problems.append(f" has no field '{name}' (string), {available}")
        elif not is_text(fields[name]):
            problems.append(f": field '{name}' has type {fields[name]}, expected string")
    for name, field_type in fields.items():
        if name == "bytes" and is_binary(field_type):
            continue
        if name not in _RESERVED["fields"]:
            problems.append(f" has an unknown field '{name}', expected {_MEDIA_EXPECTED}")
        elif name in (c.MEDIA_START_S, c.MEDIA_END_S) and not is_seconds(field_type):
            problems.append(f": field '{name}' has type {field_type}, expected double (seconds)")
    return problems


def _name_clash(field: pa.Field, where: str) -> list[str]:
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


def _existing(names: Iterable[str], *wanted: str, kind: str = "columns") -> str:
    """Lists the names that exist, with a guess which of them was meant."""
    available = list(names)
    unreserved = [name for name in available if name not in _RESERVED[kind]]
    guess = next((near for name in wanted if (near := nearest(name, unreserved))), None)
    hint = f" (is '{guess}' meant?)" if guess else ""
    return f"the {kind} are: {', '.join(available) or 'none'}{hint}"


def _in_parentheses(names: dict[str, pa.DataType]) -> str:
    return f" ({', '.join(names)})" if names else " (it has none)"
