"""Predicates on Arrow types: what their values can be used as."""

import pyarrow as pa


def plain_type(arrow_type: pa.DataType) -> pa.DataType:
    """Returns the value type of a dictionary type, and any other type itself."""
    return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type


def is_text(arrow_type: pa.DataType) -> bool:
    """Whether the values are strings, however they are stored."""
    value_type = plain_type(arrow_type)
    return bool(
        pa.types.is_string(value_type)
        or pa.types.is_large_string(value_type)
        or pa.types.is_string_view(value_type)
    )


def fits_int64(arrow_type: pa.DataType) -> bool:
    """Whether every value is a whole number that int64 holds."""
    value_type = plain_type(arrow_type)
    return bool(pa.types.is_integer(value_type) and value_type != pa.uint64())


def is_seconds(arrow_type: pa.DataType) -> bool:
    """Whether the values can be read as seconds."""
    # pyarrow infers null for a field that is always None, and int64 for whole seconds.
    return bool(
        pa.types.is_floating(arrow_type)
        or pa.types.is_integer(arrow_type)
        or pa.types.is_null(arrow_type)
    )


def is_list(arrow_type: pa.DataType) -> bool:
    """Whether each value is a list."""
    return bool(
        pa.types.is_list(arrow_type)
        or pa.types.is_large_list(arrow_type)
        or pa.types.is_fixed_size_list(arrow_type)
        or is_list_view(arrow_type)
    )


def is_list_view(arrow_type: pa.DataType) -> bool:
    """Whether each value is a list with a start and a size of its own."""
    return bool(pa.types.is_list_view(arrow_type) or pa.types.is_large_list_view(arrow_type))


def can_be_a_path(arrow_type: pa.DataType) -> bool:
    """Whether values can be written as folder names and read back from them."""
    return bool(
        is_text(arrow_type)
        or pa.types.is_integer(arrow_type)
        or pa.types.is_boolean(arrow_type)
        or pa.types.is_date(arrow_type)
    )
