"""Turns an Arrow type into answers about what its values can be used as. Knows no columns."""

import pyarrow as pa


def plain_type(found: pa.DataType) -> pa.DataType:
    """The type of the values: a dictionary type is only a way to store them."""
    return found.value_type if pa.types.is_dictionary(found) else found


def is_text(found: pa.DataType) -> bool:
    """Whether the values are strings, however they are stored."""
    plain = plain_type(found)
    return bool(
        pa.types.is_string(plain)
        or pa.types.is_large_string(plain)
        or pa.types.is_string_view(plain)
    )


def fits_int64(found: pa.DataType) -> bool:
    """Whether every value is a whole number that int64 holds."""
    plain = plain_type(found)
    return bool(pa.types.is_integer(plain) and plain != pa.uint64())


def is_seconds(found: pa.DataType) -> bool:
    """Whether the values can be read as seconds."""
    # A field that is always None is inferred as null, whole seconds as int64.
    return bool(
        pa.types.is_floating(found) or pa.types.is_integer(found) or pa.types.is_null(found)
    )


def is_list(found: pa.DataType) -> bool:
    """Whether each value is a list."""
    return bool(
        pa.types.is_list(found)
        or pa.types.is_large_list(found)
        or pa.types.is_fixed_size_list(found)
    )


def can_be_a_path(found: pa.DataType) -> bool:
    """Whether values can name a folder and be read back from its name."""
    return bool(
        is_text(found)
        or pa.types.is_integer(found)
        or pa.types.is_boolean(found)
        or pa.types.is_date(found)
    )
