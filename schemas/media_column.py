"""Finds the column of a manifest that holds the media themselves, and takes it apart.

Data sets of the Hugging Face hub keep pictures in a column struct<bytes, path>, or a list of them.
Between the stages such a column becomes `uri` or `media`, with the paths, and MEDIA_BYTES.
"""

from collections.abc import Mapping
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import convert
from mediamill.schemas.arrow_types import is_list, is_text, plain_type
from mediamill.schemas.errors import JobError

# The bytes of each of a row's media; null for one that is fetched.
MEDIA_BYTES_FIELD = pa.field(c.MEDIA_BYTES, pa.list_(pa.large_binary()))
_BYTES, _PATH = "bytes", "path"
HUB_STRUCT = pa.struct([(_BYTES, pa.binary()), (_PATH, pa.string())])
_BINARY_NAMES = ("image", "images", "video", "videos")  # of columns of bytes without a path
_EXPECTED = "binary, struct<bytes: binary, path: string> or a list of them"


def find_media_column(schema: pa.Schema, wanted: str | None, where: str) -> str | None:
    """Returns the name of the column that holds media; None if the manifest names them.

    wanted: the job's key media_column; None = the only such column. where: of the manifest.
    Raises JobError if there are several, or if `wanted` is none.
    """
    names = schema.names
    if wanted is not None:
        _check_wanted(schema, wanted, where)
        return wanted
    if c.MEDIA in names:
        return c.MEDIA if _has_bytes(_element(schema.field(c.MEDIA).type)) else None
    if c.URI in names:
        return None
    columns = [field.name for field in schema if _is_hub_struct(_element(field.type))]
    if not columns:
        named = [field for field in schema if field.name in _BINARY_NAMES]
        columns = [field.name for field in named if is_binary(_element(field.type))]
    if len(columns) > 1:
        raise JobError(
            f"{where}: found {len(columns)} columns that hold media ({', '.join(columns)}), "
            "expected media_column to name one of them"
        )
    return columns[0] if columns else None


def same_media_column(
    schemas: Mapping[str, pa.Schema], wanted: str | None, known: pa.Field | None
) -> dict[str, pa.Schema]:
    """Returns the schemas of files, in which the column that holds media has a type of its own.

    In some files it may have no value and the type null, or be `media` without bytes.
    wanted: as in `find_media_column`. known: a field of such a type, if none of the files has it.
    """
    for schema in schemas.values():
        try:
            name = find_media_column(schema, wanted, "")
        except JobError:
            continue  # the check of this file says it, unless another file has the type
        if name is not None:
            known = schema.field(name)
            break
    if known is None:
        return dict(schemas)
    return {name: _with_media(schema, known) for name, schema in schemas.items()}


def _with_media(schema: pa.Schema, known: pa.Field) -> pa.Schema:
    position = schema.get_field_index(known.name)
    if position < 0:
        return schema
    file_type = schema.field(position).type
    has_no_bytes = known.name == c.MEDIA and pa.types.is_struct(_element(file_type))
    if pa.types.is_null(file_type):
        return schema.set(position, known)
    if has_no_bytes and not _has_bytes(_element(file_type)):
        media = pa.struct([*_element(file_type), pa.field(_BYTES, pa.binary())])
        return schema.set(position, pa.field(known.name, pa.list_(media)))
    return schema


def is_single(schema: pa.Schema, name: str) -> bool:
    """Whether each value of the column is one medium, and no list."""
    return not is_list(schema.field(name).type)


def unpack(
    table: pa.Table, name: str, form: Literal["uri", "media"], media_type: pa.DataType
) -> pa.Table:
    """Returns the table with the columns `form` and MEDIA_BYTES in place of the column `name`.

    The bytes are not copied. media_type: of the column `media`.
    """
    column = table[name].combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_null(column.type) and form == c.MEDIA:
        column = pa.nulls(len(column), media_type)
    if form == c.URI:
        data, paths = _parts(column)
        offsets = pa.array(range(len(column) + 1), pa.int32())
        new = paths
        values = pa.ListArray.from_arrays(offsets, data, type=MEDIA_BYTES_FIELD.type)
    else:
        offsets = list_offsets(column)
        flat = pc.list_flatten(column)
        data, paths = _parts(flat)
        media = _media_structs(flat, paths, media_type.value_type)
        new = pa.ListArray.from_arrays(offsets, media, type=media_type)
        values = pa.ListArray.from_arrays(offsets, data, type=MEDIA_BYTES_FIELD.type)
    rest = table.drop_columns([name])
    return rest.append_column(form, new).append_column(MEDIA_BYTES_FIELD, values)


def list_offsets(column: pa.Array) -> pa.Array:
    """The offsets of lists in what pc.list_flatten returns; a null one stands for a null list."""
    lengths = pc.list_value_length(column)
    ends = pc.cumulative_sum(pc.cast(pc.fill_null(lengths, 0), pa.int32()))
    starts = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    valid = pa.concat_arrays([column.is_valid(), pa.array([True])])
    return pc.if_else(valid, starts, pa.scalar(None, pa.int32()))


def is_binary(arrow_type: pa.DataType) -> bool:
    """Whether the values are bytes, however they are stored."""
    kinds, arrow_type = pa.types, plain_type(arrow_type)
    return bool(
        kinds.is_binary(arrow_type)
        or kinds.is_large_binary(arrow_type)
        or kinds.is_binary_view(arrow_type)
        or kinds.is_fixed_size_binary(arrow_type)
    )


def _check_wanted(schema: pa.Schema, wanted: str, where: str) -> None:
    if wanted not in schema.names:
        raise JobError(
            f"{where}: media_column names column '{wanted}', the columns are: "
            f"{', '.join(schema.names)}"
        )
    column_type = schema.field(wanted).type
    element = _element(column_type)
    if not (is_binary(element) or _is_hub_struct(element) or _has_bytes(element)):
        raise JobError(
            f"{where}: media_column names column '{wanted}' of type {column_type}, expected "
            f"{_EXPECTED}"
        )
    for other in (c.URI, c.MEDIA):
        if other in schema.names and other != wanted:
            raise JobError(
                f"{where}: found both the column '{other}' and media_column ('{wanted}'), expected "
                "only one of them: drop or rename the column"
            )


def _element(column_type: pa.DataType) -> pa.DataType:
    return column_type.value_type if is_list(column_type) else column_type


def _has_bytes(element: pa.DataType) -> bool:
    return pa.types.is_struct(element) and any(
        field.name == _BYTES and is_binary(field.type) for field in element
    )


def _is_hub_struct(element: pa.DataType) -> bool:
    return _has_bytes(element) and all(
        field.name == _BYTES or (field.name == _PATH and _is_text_or_null(field.type))
        for field in element
    )


def _is_text_or_null(arrow_type: pa.DataType) -> bool:
    return is_text(arrow_type) or pa.types.is_null(arrow_type)


def _parts(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The bytes and the paths of media, null where they have none."""
    paths = pa.nulls(len(values), pa.string())
    if pa.types.is_struct(values.type):
        fields = {field.name for field in values.type}
        path = next((name for name in (_PATH, c.MEDIA_URI) if name in fields), None)
        if path is not None:
            paths = convert(pc.struct_field(values, path), pa.string())
        no_bytes = pa.nulls(len(values), pa.large_binary())
        values = pc.struct_field(values, _BYTES) if _BYTES in fields else no_bytes
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_fixed_size_binary(values.type):
        values = pc.cast(values, pa.binary())
    return pc.cast(values, pa.large_binary()), paths


def _media_structs(values: pa.Array, paths: pa.Array, struct: pa.StructType) -> pa.Array:
    fields = {field.name for field in values.type} if pa.types.is_struct(values.type) else set()
    columns = [
        pc.cast(pc.struct_field(values, field.name), field.type)
        if field.name in fields and field.name != c.MEDIA_URI
        else paths
        if field.name == c.MEDIA_URI
        else pa.nulls(len(values), field.type)
        for field in struct
    ]
    return pa.StructArray.from_arrays(columns, fields=list(struct), mask=values.is_null())
