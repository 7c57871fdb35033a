"""Checks the Arrow schema of a manifest, and describes its columns as a ManifestSchema.

Reads no rows: duplicate and null ids are found in pipeline/manifest/unique_ids.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import convert_column, flight_type
from mediamill.schemas.arrow_types import (
    fits_int64,
    is_list,
    is_seconds,
    is_text,
    plain_type,
)
from mediamill.schemas.arrow_unify import loses_fields, unified
from mediamill.schemas.errors import JobError
from mediamill.schemas.media_column import (
    HUB_STRUCT,
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
_NEW_OUTPUT = "write to a new output folder"
_MEDIA_EXPECTED = "list<struct<type: string, uri: string, start_s: double?, end_s: double?>>"


@dataclass(frozen=True)
class ManifestSchema:
    """The columns of a manifest, in the types that the pipeline works with.

    id_type: pa.string() or pa.int64().
    form: which of the columns `uri` and `media` the manifest has.
    optional: which of `prompt`, `system`, `messages` it has, in that order.
    user: all further columns, in the manifest's order, with the types that the result has. A
        dictionary column has the type of its values.
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
        """All columns between the stages: id, uri or media, the optional ones, the user's."""
        media = (
            pa.field(c.URI, pa.string()) if self.form == c.URI else pa.field(c.MEDIA, MEDIA_TYPE)
        )
        texts = tuple(pa.field(name, pa.string()) for name in self.optional)
        data = () if self.media_column is None else (MEDIA_BYTES_FIELD,)
        user = tuple(pa.field(field.name, flight_type(field.type)) for field in self.user)
        return (pa.field(c.ID, self.id_type), media, *texts, *user, *data)

    @property
    def media_field(self) -> pa.Field | None:
        """The column that holds the media, with a type of its own; None if there is none."""
        if self.media_column is None:
            return None
        is_one = self.form == c.URI
        return pa.field(self.media_column, HUB_STRUCT if is_one else pa.list_(HUB_STRUCT))

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

        Columns that the table lacks are null. Bytes that are no UTF-8 stay in texts as they are.
        Raises pa.ArrowInvalid when a value does not fit, which the plan of a job rules out.
        """
        if self.media_column is not None:
            table = unpack(table, self.media_column, self.form, MEDIA_TYPE)
        names, user = set(table.schema.names), {field.name for field in self.user}
        columns = [
            convert_column(table[field.name], field.type, exact=field.name in user)
            if field.name in names
            else pa.nulls(table.num_rows, field.type)
            for field in self.fields
        ]
        return pa.Table.from_arrays(columns, schema=self.arrow)

    def merged(self, other: "ManifestSchema", where: str, others: str) -> "ManifestSchema":
        """Returns the schema that holds the rows of both; a column that one lacks is null there.

        where, others: what `other` and this schema describe, for error messages.
        Raises JobError for columns whose types have nothing in common.
        """
        if other.id_type != self.id_type:
            raise JobError(f"{where}: {_different(c.ID, other.id_type, self.id_type, others)}")
        if other.form != self.form and other.media_column and self.media_column:
            raise JobError(
                f"{where}: column '{other.media_column}' holds {_held(other)}, expected "
                f"{_held(self)} as in {others}"
            )
        if other.form != self.form:
            raise JobError(
                f"{where}: found the column '{other.form}', expected '{self.form}' as in {others}"
            )
        if other.media_column != self.media_column:
            raise JobError(
                f"{where}: the media are {_media_place(other)}, expected them "
                f"{_media_place(self)} as in {others}"
            )
        user = {field.name: field for field in self.user}
        for field in other.user:
            known = user.setdefault(field.name, field)
            if known.type != field.type:
                common = unified(known.type, field.type)
                if common is None:
                    different = _different(field.name, field.type, known.type, others)
                    raise JobError(f"{where}: {different}")
                known = known.with_type(plain_type(common))
            user[field.name] = _with_metadata(known, field)
        optional = {*self.optional, *other.optional}
        return ManifestSchema(
            self.id_type,
            self.form,
            tuple(name for name in _OPTIONAL_TEXT if name in optional),
            tuple(user.values()),
            self.media_column,
        )

    def check_holds(self, other: "ManifestSchema", where: str) -> None:
        """Checks that rows of the schema `other`, of the file `where`, can become rows of this one.

        This schema is the one that an output was begun with, which never changes. Whether each
        value fits is another question, see `always_fits`. Raises JobError.
        """
        merged = self.merged(other, where, "the files that the output was begun with")
        known = {field.name: field.type for field in self.user}
        found = {field.name: field.type for field in other.user}
        for name in (*merged.optional, *(field.name for field in merged.user)):
            if name not in known and name not in self.optional:
                raise JobError(
                    f"{where}: found column '{name}', which the files that the output was begun "
                    f"with do not have: {_NEW_OUTPUT}, or drop the column"
                )
        for name, found_type in found.items():
            if pa.types.is_null(known[name]) and not pa.types.is_null(found_type):
                raise JobError(
                    f"{where}: column '{name}' is {found_type}, and had no value and no type when "
                    f"the output was begun: {_NEW_OUTPUT}, or drop the column"
                )
            if lost := loses_fields(found_type, known[name]):
                raise JobError(
                    f"{where}: column '{name}' has the field '{lost}', which the files that the "
                    f"output was begun with do not have: {_NEW_OUTPUT}, or drop the field"
                )


def _held(schema: ManifestSchema) -> str:
    return "one medium per row" if schema.form == c.URI else "lists of media"


def _media_place(schema: ManifestSchema) -> str:
    column = schema.media_column
    return f"behind the addresses of '{schema.form}'" if column is None else f"in '{column}'"


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
        raise JobError(*mistakes)
    is_text_id = is_text(schema.field(c.ID).type)
    return ManifestSchema(
        id_type=pa.string() if is_text_id else pa.int64(),
        form="uri" if _has_one_medium(schema, in_table) else "media",
        optional=tuple(name for name in _OPTIONAL_TEXT if name in schema.names),
        user=tuple(
            pa.field(field.name, plain_type(field.type), metadata=field.metadata)
            for field in schema
            if field.name not in c.MANIFEST_COLUMNS and field.name != in_table
        ),
        media_column=in_table,
    )


def _has_one_medium(schema: pa.Schema, in_table: str | None) -> bool:
    return c.URI in schema.names if in_table is None else is_single(schema, in_table)


def _duplicate_columns(schema: pa.Schema, where: str) -> list[str]:
    names = schema.names
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return [f"{where}: found {names.count(n)} columns named '{n}', expected one" for n in repeated]


def _missing_columns(schema: pa.Schema, where: str, in_table: str | None) -> list[str]:
    mistakes = []
    names = schema.names
    if c.ID not in names:
        mistakes.append(f"{where}: no column 'id' (string or int64), {existing_names(names, c.ID)}")
    if c.URI not in names and c.MEDIA not in names and in_table is None:
        mistakes.append(
            f"{where}: no column 'uri' (string) or 'media' ({_MEDIA_EXPECTED}), "
            f"{existing_names(names, c.URI, c.MEDIA)}"
        )
    if c.URI in names and c.MEDIA in names:
        mistakes.append(
            f"{where}: found both columns 'uri' and 'media', expected only one of them: "
            "drop or rename the other"
        )
    return mistakes


def _wrong_type(field: pa.Field, where: str) -> list[str]:
    column = f"{where}: column '{field.name}'"
    if pa.types.is_null(field.type) and field.name != c.ID:
        return []  # no value at all, for example of a column that is always None in pandas
    if field.name == c.ID and not (is_text(field.type) or fits_int64(field.type)):
        return [f"{column} has type {field.type}, expected string or int64"]
    if field.name in (c.URI, *_OPTIONAL_TEXT) and not is_text(field.type):
        hint = " (the chat as JSON text)" if field.name == c.MESSAGES else ""
        return [f"{column} has type {field.type}, expected string{hint}"]
    if field.name == c.MEDIA:
        return [f"{column}{problem}" for problem in _media_problems(field.type)]
    return []


def _media_problems(media_type: pa.DataType) -> list[str]:
    if is_list(media_type) and pa.types.is_null(media_type.value_type):
        return []
    if not is_list(media_type) or not pa.types.is_struct(media_type.value_type):
        return [f" has type {media_type}, expected {_MEDIA_EXPECTED}"]
    fields = {field.name: field.type for field in media_type.value_type}
    problems = []
    for name in (c.MEDIA_TYPE, c.MEDIA_URI):
        if name not in fields:
            available = existing_names(fields, name, kind="fields")
            problems.append(f" has no field '{name}' (string), {available}")
        elif not is_text(fields[name]) and not pa.types.is_null(fields[name]):
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


def _different(name: str, found: pa.DataType, expected: pa.DataType, where: str) -> str:
    zoned = [pa.types.is_timestamp(each) and each.tz is not None for each in (found, expected)]
    times = pa.types.is_timestamp(found) and pa.types.is_timestamp(expected)
    hint = " (one has a time zone and the other none)" if times and any(zoned) else ""
    return f"column '{name}' is {found}, expected {expected} as in {where}{hint}"


def _with_metadata(known: pa.Field, other: pa.Field) -> pa.Field:
    """Returns the field, with the metadata that both have."""
    return known if known.metadata == other.metadata else known.remove_metadata()


def existing_names(names: Iterable[str], *wanted: str, kind: str = "columns") -> str:
    """Lists the names that exist, with a guess which of them was meant."""
    available = list(names)
    unreserved = [name for name in available if name not in _RESERVED[kind]]
    guess = next((near for name in wanted if (near := nearest(name, unreserved))), None)
    hint = f" (is '{guess}' meant?)" if guess else ""
    return f"the {kind} are: {', '.join(available) or 'none'}{hint}"
