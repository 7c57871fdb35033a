"""Finds the type that columns of several files have in common, as dataset readers do."""

import pyarrow as pa

from mediamill.schemas.arrow_types import is_list, plain_type

_UNITS = ("s", "ms", "us", "ns")
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 19}  # of the largest integer of so many bits
_UINT64_DIGITS = 20
_DECIMALS = ((9, 32), (18, 64), (38, 128), (76, 256))  # largest precision, and bits


def unified(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Returns the type that holds the values of both types; None if there is none.

    Some values may still not fit it (an integer above 2^53 in a double): see `always_fits`.
    A dictionary beside another type has the type of its values.
    """
    if first == other:
        return first
    if pa.types.is_null(first) or pa.types.is_null(other):
        return other if pa.types.is_null(first) else first
    if pa.types.is_dictionary(first) or pa.types.is_dictionary(other):
        return unified(plain_type(first), plain_type(other))
    extensions = [isinstance(arrow_type, pa.BaseExtensionType) for arrow_type in (first, other)]
    if any(extensions):
        if all(extensions):
            return None
        plain = [
            arrow_type.storage_type if isinstance(arrow_type, pa.BaseExtensionType) else arrow_type
            for arrow_type in (first, other)
        ]
        return unified(*plain)
    for rule in (_texts, _binaries, _numbers, _times, _lists, _maps, _structs):
        if common := rule(first, other):
            return common
    return None


def always_fits(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether every value of a type can be converted to `target`, a type unified with it."""
    if source == target or pa.types.is_null(source):
        return True
    if isinstance(source, pa.BaseExtensionType):
        return always_fits(source.storage_type, target)
    if isinstance(target, pa.BaseExtensionType):
        return always_fits(source, target.storage_type)
    if pa.types.is_dictionary(source):
        return always_fits(source.value_type, target)
    if pa.types.is_struct(source) and pa.types.is_struct(target):
        # Fields of which there are two are matched by their places.
        known = {field.name: field.type for field in target}
        return all(
            field.name in known and always_fits(field.type, known[field.name]) for field in source
        )
    if pa.types.is_map(source) and pa.types.is_map(target):
        return always_fits(source.key_type, target.key_type) and always_fits(
            source.item_type, target.item_type
        )
    if is_list(source) and is_list(target):
        grows = not pa.types.is_fixed_size_list(target)
        return grows and always_fits(source.value_type, target.value_type)
    if pa.types.is_integer(source) and pa.types.is_floating(target):
        return bool(source.bit_width <= target.bit_width // 2)
    if pa.types.is_integer(source) and pa.types.is_integer(target):
        return bool(unified(source, target) == target)
    if pa.types.is_floating(source) and pa.types.is_floating(target):
        return bool(source.bit_width <= target.bit_width)
    if pa.types.is_decimal(target):
        return bool(unified(source, target) == target)
    if _is_text(source) or _is_binary(source):
        return not pa.types.is_fixed_size_binary(target)
    return bool(pa.types.is_timestamp(source) and source.unit == getattr(target, "unit", None))


def loses_fields(source: pa.DataType, target: pa.DataType) -> str | None:
    """Returns the name of a field of a struct, at any depth, that `target` does not have."""
    if isinstance(source, pa.BaseExtensionType) or isinstance(target, pa.BaseExtensionType):
        return None
    if pa.types.is_struct(source) and pa.types.is_struct(target):
        known = {field.name: field.type for field in target}
        for field in source:
            if field.name not in known:
                return str(field.name)
            if lost := loses_fields(field.type, known[field.name]):
                return f"{field.name}.{lost}"
    elif pa.types.is_map(source) and pa.types.is_map(target):
        return loses_fields(source.key_type, target.key_type) or loses_fields(
            source.item_type, target.item_type
        )
    elif is_list(source) and is_list(target):
        return loses_fields(source.value_type, target.value_type)
    return None


def _is_text(arrow_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(arrow_type)
        or pa.types.is_large_string(arrow_type)
        or pa.types.is_string_view(arrow_type)
    )


def _is_binary(arrow_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(arrow_type)
        or pa.types.is_large_binary(arrow_type)
        or pa.types.is_binary_view(arrow_type)
        or pa.types.is_fixed_size_binary(arrow_type)
    )


def _texts(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (_is_text(first) and _is_text(other)):
        return None
    return pa.large_string() if pa.large_string() in (first, other) else pa.string()


def _binaries(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (_is_binary(first) and _is_binary(other)):
        return None
    return pa.large_binary() if pa.large_binary() in (first, other) else pa.binary()


def _numbers(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_decimal(first) or pa.types.is_decimal(other):
        return _decimal(first, other)
    integers = [pa.types.is_integer(arrow_type) for arrow_type in (first, other)]
    floats = [pa.types.is_floating(arrow_type) for arrow_type in (first, other)]
    if all(integers):
        return _integer(first, other)
    if all(floats):
        return max(first, other, key=lambda arrow_type: arrow_type.bit_width)
    return pa.float64() if any(integers) and any(floats) else None


def _integer(first: pa.DataType, other: pa.DataType) -> pa.DataType:
    signed = [pa.types.is_signed_integer(arrow_type) for arrow_type in (first, other)]
    if signed[0] == signed[1]:
        return max(first, other, key=lambda arrow_type: arrow_type.bit_width)
    unsigned, plain = (other, first) if signed[0] else (first, other)
    if unsigned.bit_width == 64:
        return pa.decimal128(_UINT64_DIGITS, 0)
    bits = max(plain.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[bits]


def _decimal(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    whole, scale, bits = 0, 0, 32
    for arrow_type in (first, other):
        if pa.types.is_decimal(arrow_type):
            whole, scale = (
                max(whole, arrow_type.precision - arrow_type.scale),
                max(scale, arrow_type.scale),
            )
            bits = max(bits, arrow_type.bit_width)
        elif pa.types.is_integer(arrow_type):
            digits = _UINT64_DIGITS if arrow_type == pa.uint64() else _DIGITS[arrow_type.bit_width]
            whole = max(whole, digits)
        else:
            return None
    for largest, size in _DECIMALS:
        if size >= bits and whole + scale <= largest:
            make = {32: pa.decimal32, 64: pa.decimal64, 128: pa.decimal128, 256: pa.decimal256}
            return make[size](whole + scale, scale)
    return None


def _times(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_timestamp(first) and pa.types.is_timestamp(other):
        if (first.tz is None) != (other.tz is None):
            return None  # a moment, or what a clock somewhere showed
        return pa.timestamp(_finer(first, other), first.tz if first.tz == other.tz else "UTC")
    if pa.types.is_duration(first) and pa.types.is_duration(other):
        return pa.duration(_finer(first, other))
    if pa.types.is_time(first) and pa.types.is_time(other):
        unit = _finer(first, other)
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    if pa.types.is_date(first) and pa.types.is_date(other):
        return pa.date64()
    dated = [
        arrow_type
        for arrow_type in (first, other)
        if pa.types.is_timestamp(arrow_type) and arrow_type.tz is None
    ]
    return dated[0] if dated and any(map(pa.types.is_date, (first, other))) else None


def _finer(first: pa.DataType, other: pa.DataType) -> str:
    return _UNITS[max(_UNITS.index(first.unit), _UNITS.index(other.unit))]


def _lists(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (is_list(first) and is_list(other)):
        return None
    value = _field(first.value_field, other.value_field)
    if value is None:
        return None
    if pa.types.is_fixed_size_list(first) and pa.types.is_fixed_size_list(other):
        return pa.list_(value, first.list_size if first.list_size == other.list_size else -1)
    kinds = {arrow_type.id for arrow_type in (first, other)}
    if len(kinds) == 1 and pa.types.is_list_view(first):
        return pa.list_view(value)
    if len(kinds) == 1 and pa.types.is_large_list_view(first):
        return pa.large_list_view(value)
    large = any(pa.types.is_large_list(e) or pa.types.is_large_list_view(e) for e in (first, other))
    return pa.large_list(value) if large else pa.list_(value)


def _maps(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (pa.types.is_map(first) and pa.types.is_map(other)):
        return None
    key, item = _field(first.key_field, other.key_field), _field(first.item_field, other.item_field)
    if key is None or item is None:
        return None
    sorted_keys = first.keys_sorted and other.keys_sorted
    return pa.map_(key.with_nullable(False), item, keys_sorted=sorted_keys)


def _structs(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (pa.types.is_struct(first) and pa.types.is_struct(other)):
        return None
    fields: dict[str, pa.Field] = {}
    others = {field.name: field for field in other}
    if len({field.name for field in first}) < len(first) or len(others) < len(other):
        return None  # two fields of one name
    for field in first:
        same = others.pop(field.name, None)
        common = field.with_nullable(True) if same is None else _field(field, same)
        if common is None:
            return None
        fields[field.name] = common
    return pa.struct([*fields.values(), *(field.with_nullable(True) for field in others.values())])


def _field(first: pa.Field, other: pa.Field) -> pa.Field | None:
    common = unified(first.type, other.type)
    if common is None:
        return None
    return first.with_type(common).with_nullable(first.nullable or other.nullable)
