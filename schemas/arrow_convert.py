"""Converts Arrow arrays to other types at any depth, without making Python objects of values.

pyarrow cannot take rows of views, and slices of views and of list views keep all bytes of the array
that they were cut from; Ray Data handles some extension types in its own way. So tables between
the stages have `flight_type`, and get the user's types back when they are written.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mediamill.schemas.arrow_types import is_list, is_list_view

_TAKE_BYTES = 1 << 28  # of a table whose chunks may be joined; a list may hold bits


def flight_type(arrow_type: pa.DataType) -> pa.DataType:
    """Returns the type that columns of a type have between the stages.

    Without views and extension types, at any depth; all else stays.
    """
    if isinstance(arrow_type, pa.BaseExtensionType):
        return flight_type(arrow_type.storage_type)
    if pa.types.is_string_view(arrow_type):
        return pa.large_string()
    if pa.types.is_binary_view(arrow_type):
        return pa.large_binary()
    if pa.types.is_struct(arrow_type):
        return pa.struct([_flight_field(field) for field in arrow_type])
    if pa.types.is_map(arrow_type):
        key, item = _flight_field(arrow_type.key_field), _flight_field(arrow_type.item_field)
        return pa.map_(key, item, keys_sorted=arrow_type.keys_sorted)
    if is_list(arrow_type):
        value = _flight_field(arrow_type.value_field)
        if pa.types.is_fixed_size_list(arrow_type):
            return pa.list_(value, arrow_type.list_size)
        return pa.large_list(value) if _is_large(arrow_type) else pa.list_(value)
    return arrow_type


def _flight_field(field: pa.Field) -> pa.Field:
    return field.with_type(flight_type(field.type))


def convert_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns a table of the schema: its columns by name, converted; null where there is none.

    Raises pa.ArrowInvalid as `convert` does.
    """
    names = set(table.schema.names)
    columns = [
        convert_column(table[field.name], field.type)
        if field.name in names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def take_rows(table: pa.Table, indices: npt.NDArray[np.int64]) -> pa.Table:
    """Returns these rows of a table with columns of any type."""
    flight = pa.schema([_flight_field(field) for field in table.schema])
    if flight.types == table.schema.types:
        return _take(table, indices)
    return convert_table(_take(convert_table(table, flight), indices), table.schema)


def filter_rows(table: pa.Table, condition: pc.Expression) -> pa.Table:
    """Returns the rows that fulfil a condition, of a table with columns of any type."""
    flight = pa.schema([_flight_field(field) for field in table.schema])
    if flight.types == table.schema.types:
        return table.filter(condition)
    return convert_table(convert_table(table, flight).filter(condition), table.schema)


def _take(table: pa.Table, indices: npt.NDArray[np.int64]) -> pa.Table:
    """Returns these rows; those of a large table in chunks.

    pyarrow joins the chunks of a column before it takes rows: 32-bit offsets end at 2 GiB.
    """
    if table.nbytes < _TAKE_BYTES:
        return table.take(indices)
    batches = table.to_batches()
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    sources = np.searchsorted(starts, indices, side="right") - 1
    pieces = [
        batches[sources[run[0]]].take(pa.array(indices[run] - starts[sources[run[0]]]))
        for run in np.split(np.arange(len(indices)), np.flatnonzero(np.diff(sources)) + 1)
        if run.size
    ]
    return pa.Table.from_batches(pieces, schema=table.schema)


def parquet_options(schema: pa.Schema) -> dict[str, int]:
    """Returns options for a ParquetWriter of this schema."""
    if all(field.type == flight_type(field.type) for field in schema):
        return {}
    # pyarrow cuts columns into batches, which it cannot do with views in structs: one for all.
    return {"write_batch_size": 1 << 30, "max_rows_per_page": 1 << 30}


def convert_column(
    column: pa.ChunkedArray, target: pa.DataType, exact: bool = True
) -> pa.ChunkedArray:
    """Converts a column, see `convert`."""
    if column.type == target:
        return column
    chunks = [convert(chunk, target, exact) for chunk in column.chunks]
    return pa.chunked_array(chunks, type=target)


def convert(array: pa.Array, target: pa.DataType, exact: bool = True) -> pa.Array:
    """Returns the array in another type; fields of structs go by name, missing ones are null.

    Texts are not checked: bytes that are no UTF-8 stay as they are.
    Raises pa.ArrowInvalid when a value does not fit; if not `exact`, numbers are rounded instead.
    """
    source = array.type
    if source == target:
        return array
    if pa.types.is_null(source):
        return pa.nulls(len(array), target)
    if isinstance(source, pa.BaseExtensionType):
        return convert(array.storage, target, exact)
    if isinstance(target, pa.BaseExtensionType):
        storage = convert(array, target.storage_type, exact)
        return pa.ExtensionArray.from_storage(target, storage)
    if pa.types.is_dictionary(source):
        return convert(array.dictionary_decode(), target, exact)
    if pa.types.is_struct(source) and pa.types.is_struct(target):
        return _struct(array, target, exact)
    if pa.types.is_map(source) and pa.types.is_map(target):
        return _map(array, target, exact)
    if is_list(source) and is_list(target):
        return _list(array, target, exact)
    converted = pc.cast(array, target, safe=exact)
    if exact and pa.types.is_floating(target) and not _widens(source, target):
        _check_exact(array, converted)
    return converted


def _check_exact(array: pa.Array, converted: pa.Array) -> None:
    """Raises pa.ArrowInvalid for a rounded number, which pyarrow lets pass."""
    back = pc.cast(converted, array.type, safe=False)
    equal = pc.equal(array, back)
    if pa.types.is_floating(array.type):
        equal = pc.or_(equal, pc.is_nan(array))
    wrong = pc.index(equal, False).as_py()
    if wrong >= 0:
        raise pa.ArrowInvalid(f"{array[wrong]} is not exact in {converted.type}")


def _widens(source: pa.DataType, target: pa.DataType) -> bool:
    return bool(pa.types.is_floating(source) and source.bit_width <= target.bit_width)


def _struct(array: pa.Array, target: pa.DataType, exact: bool) -> pa.Array:
    source = array.type
    children = []
    for position, field in enumerate(target):
        at = position if source.get_all_field_indices(field.name)[1:] else -1
        at = source.get_field_index(field.name) if at < 0 else at
        child = pa.nulls(len(array), field.type) if at < 0 else array.field(at)
        children.append(convert(child, field.type, exact))
    if not children:
        return pc.cast(array, target)
    return pa.StructArray.from_arrays(children, fields=list(target), mask=array.is_null())


def _map(array: pa.Array, target: pa.DataType, exact: bool) -> pa.Array:
    children = [
        convert(array.keys, target.key_type, exact),
        convert(array.items, target.item_type, exact),
    ]
    entries = pa.StructArray.from_arrays(children, fields=[target.key_field, target.item_field])
    buffers = array.buffers()[:2]
    return pa.Array.from_buffers(
        target, len(array), buffers, offset=array.offset, children=[entries]
    )


def _list(array: pa.Array, target: pa.DataType, exact: bool) -> pa.Array:
    source = array.type
    if _kind(source) != _kind(target):
        array = _as_kind(array, target)
    buffers = array.buffers()[: 1 + _kind(target)[1]]
    values = convert(array.values, target.value_type, exact)
    return pa.Array.from_buffers(
        target, len(array), buffers, offset=array.offset, children=[values]
    )


def _as_kind(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Returns a list array of the target's kind, with the values that the array has."""
    field, large = array.type.value_field, _is_large(target)
    plain = pa.large_list(field) if large else pa.list_(field)
    if pa.types.is_fixed_size_list(target):
        return pc.cast(array, pa.list_(field, target.list_size))
    if is_list_view(array.type):  # pyarrow's own cast leaves the last offset out
        sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        lists = pa.LargeListArray if large else pa.ListArray
        ends = pa.array(offsets, pa.int64() if large else pa.int32())
        mask = array.is_null() if array.null_count else None
        return lists.from_arrays(ends, array.flatten(), mask=mask)
    if array.type != plain:
        array = pc.cast(array, plain)
    if not is_list_view(target):
        return array
    offsets = array.offsets.to_numpy()
    sizes, starts = pa.array(np.diff(offsets)), pa.array(offsets[:-1])
    view = pa.LargeListViewArray if large else pa.ListViewArray
    mask = array.is_null() if array.null_count else None
    return view.from_arrays(starts, sizes, array.values, mask=mask)


def _kind(arrow_type: pa.DataType) -> tuple[str, int]:
    """Returns what tells kinds of lists apart, and how many buffers follow the validity."""
    if pa.types.is_fixed_size_list(arrow_type):
        return f"fixed {arrow_type.list_size}", 0
    view = is_list_view(arrow_type)
    return f"{'view' if view else 'list'} {_is_large(arrow_type)}", 2 if view else 1


def _is_large(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_large_list(arrow_type) or pa.types.is_large_list_view(arrow_type))
