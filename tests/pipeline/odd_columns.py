"""Columns of every Arrow type that Parquet holds, with the values that people meet at the edges."""

import decimal
import math
import uuid

import numpy as np
import pyarrow as pa

FAR_US = 253402300800 * 10**6 + 5  # of the year 10000
DEEP_STRUCTS, DEEP_LISTS = 40, 20


def raw(*values: bytes | None) -> pa.Array:
    """Texts of any bytes."""
    return pa.array(values, pa.binary()).view(pa.string())


BROKEN = raw(b"ok", b"caf\xe9", None, b"\xed\xa0\x80", b"a\x00b", b"")  # lone surrogate, NUL
TEXTS = pa.array(["a", None, "", "é\u0000x", "long" * 40, "\U0001f600"])
_INTS = [[1, None], None, [], [3], [4, 5, 6], [7]]


def _raw_times(kind: pa.DataType) -> pa.Array:
    return pa.array([0, None, FAR_US, -(2**60), 7, 8], pa.int64()).view(kind)


def _numbers() -> dict[str, pa.Array]:
    columns = {"bool": pa.array([True, None, False] * 2)}
    for name in ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]:
        columns[name] = pa.array([1, None, 0, 100, 2, 3], getattr(pa, name)())
    columns["uint64_max"] = pa.array([2**64 - 1, None] * 3, pa.uint64())
    for name, kind in (("float16", np.float16), ("float32", np.float32), ("float64", np.float64)):
        values = np.array([1, math.nan, -0.0, math.inf, 2, 3], kind)
        columns[name] = pa.array(values, getattr(pa, name)())
    digits = {32: 9, 64: 18, 128: 38, 256: 76}
    values = [decimal.Decimal(text) if text else None for text in ("1.23", "", "-9.99", "0")]
    for bits, precision in digits.items():
        kind = getattr(pa, f"decimal{bits}")(precision, 2)
        columns[f"decimal{bits}"] = pa.array([*values, None, values[0]], kind)
    return columns


def _times() -> dict[str, pa.Array]:
    days = pa.array([0, None, 2**31 - 1, -(2**31), 5, 6], pa.int32())
    columns = {"date32": days.cast(pa.date32())}
    columns["time32_ms"] = pa.array([0, None, 5, 6, 7, 8], pa.time32("ms"))
    for unit in ("us", "ns"):
        columns[f"time64_{unit}"] = pa.array([0, None, 5, 6, 7, 8], pa.time64(unit))
    for unit in ("ms", "us", "ns"):
        columns[f"timestamp_{unit}"] = _raw_times(pa.timestamp(unit))
    for unit in ("s", "ms", "us", "ns"):
        columns[f"duration_{unit}"] = _raw_times(pa.duration(unit))
    for zone in ("UTC", "Europe/Berlin", "Mars/Olympus", "+02:00", "Not a zone at all"):
        columns[f"timestamp {zone}"] = _raw_times(pa.timestamp("us", zone))
    return columns


def _texts() -> dict[str, pa.Array]:
    columns = {"null": pa.nulls(6), "broken_text": BROKEN}
    for name in ("string", "large_string", "string_view"):
        columns[name] = TEXTS.cast(getattr(pa, name)())
    for name in ("binary", "large_binary", "binary_view"):
        columns[name] = TEXTS.cast(pa.binary()).cast(getattr(pa, name)())
    columns["broken_view"] = BROKEN.cast(pa.string_view())
    columns["broken_large"] = BROKEN.cast(pa.large_string())
    columns["fixed_binary"] = pa.array([b"abcd", None] * 3, pa.binary(4))
    return columns


def _nested() -> dict[str, pa.Array]:
    columns = {
        name: pa.array(_INTS, kind)
        for name, kind in {
            "list": pa.list_(pa.int64()),
            "large_list": pa.large_list(pa.int64()),
            "list_view": pa.list_view(pa.int64()),
            "large_list_view": pa.large_list_view(pa.int64()),
        }.items()
    }
    columns["fixed_list"] = pa.array([[1, 2], None, [3, 4], [5, None], [1, 1], [2, 2]],
                                     pa.list_(pa.int8(), 2))  # fmt: skip
    words = [["a", None], None, [], ["long" * 10], ["b"], ["c"]]
    columns["list_of_views"] = pa.array(words, pa.list_(pa.string_view()))
    columns["view_of_views"] = pa.array(words, pa.list_view(pa.string_view()))
    columns["list_of_null"] = pa.array(
        [[None], None, [], [None, None], [], []], pa.list_(pa.null())
    )
    struct = pa.struct([("a", pa.int8()), ("b", pa.string_view()), ("c", pa.list_view(pa.int8()))])
    columns["struct"] = pa.array(
        [{"a": 1, "b": "x", "c": [1]}, None, {"a": None}, {"b": "y"}, {}, {"c": []}], struct
    )
    columns["broken_struct"] = pa.StructArray.from_arrays([BROKEN], ["t"])
    columns["far_struct"] = pa.StructArray.from_arrays([_raw_times(pa.timestamp("us"))], ["t"])
    columns["broken_list"] = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4, 5, 6]), BROKEN)
    codes = TEXTS.dictionary_encode()
    columns["struct_of_dictionary"] = pa.StructArray.from_arrays([codes], ["d"])
    columns["list_of_dictionary"] = pa.ListArray.from_arrays(pa.array(range(7), pa.int32()), codes)
    columns["struct_of_null"] = pa.array([{"n": None}, None] * 3, pa.struct([("n", pa.null())]))
    pairs = [[("a", 1)], None, [], [("b", None)], [("c", 2), ("c", 3)], []]
    columns["map"] = pa.array(pairs, pa.map_(pa.string(), pa.int32()))
    columns["map_sorted"] = pa.array(pairs, pa.map_(pa.string(), pa.int32(), keys_sorted=True))
    columns["map_of_views"] = pa.array(
        [[("a", "x")], None, [], [], [("b", None)], []], pa.map_(pa.string(), pa.string_view())
    )
    moments = pa.struct([("x", pa.list_(pa.timestamp("ns", "UTC")))])
    columns["map_nested"] = pa.array(
        [[("a", [{"x": [1]}])], None, [], [], [], []], pa.map_(pa.string(), pa.list_(moments))
    )
    deep = pa.array([1, None, 3, 4, 5, 6])
    for _ in range(DEEP_STRUCTS):
        deep = pa.StructArray.from_arrays([deep], ["x"])
    columns["deep_structs"] = deep
    deep = pa.array(["a", None, "c", "d", "e", "f"], pa.string_view())
    for _ in range(DEEP_LISTS):
        deep = pa.ListArray.from_arrays(pa.array(range(7), pa.int32()), deep)
    columns["deep_lists"] = deep
    return columns


def _extensions() -> dict[str, pa.Array]:
    storage = pa.array([uuid.UUID(int=5).bytes, None] * 3, pa.binary(16))
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), storage)
    columns = {"uuid": uuids}
    for name, kind in {"json": pa.string(), "json_large": pa.large_string()}.items():
        texts = pa.array(['{"a":1}', None, "no json"] * 2, kind)
        columns[name] = pa.ExtensionArray.from_storage(pa.json_(kind), texts)
    columns["json_broken"] = pa.ExtensionArray.from_storage(pa.json_(), BROKEN)
    bits = pa.array([1, None, 0] * 2, pa.int8())
    columns["bool8"] = pa.ExtensionArray.from_storage(pa.bool8(), bits)
    cells = pa.array([[1, 2], None] * 3, pa.list_(pa.float32(), 2))
    tensor = pa.fixed_shape_tensor(pa.float32(), [2, 1])
    columns["tensor"] = pa.ExtensionArray.from_storage(tensor, cells)
    opaque = pa.opaque(pa.binary(), "geometry", "maps")
    columns["opaque"] = pa.ExtensionArray.from_storage(opaque, pa.array([b"x", None] * 3))
    columns["list_of_uuid"] = pa.ListArray.from_arrays(pa.array(range(7), pa.int32()), uuids)
    columns["struct_of_uuid"] = pa.StructArray.from_arrays([uuids], ["u"])
    return columns


# Arrow columns of six rows by name; Parquet keeps their types.
COLUMNS: dict[str, pa.Array] = {
    **_numbers(),
    **_times(),
    **_texts(),
    **_nested(),
    **_extensions(),
}
# Columns that Parquet, or a job, keeps with another type: the type of their values.
DICTIONARIES: dict[str, pa.Array] = {
    "dictionary": TEXTS.dictionary_encode(),
    "ordered": pa.DictionaryArray.from_arrays(
        pa.array([0, 1, None, 0, 1, 0], pa.int8()), ["low", "high"], ordered=True
    ),
    "broken": BROKEN.dictionary_encode(),
    "far": _raw_times(pa.timestamp("us")).dictionary_encode(),
}
NAMES = [
    "",
    " ",
    "a.b",
    "id.x",
    "uri.y",
    "a b",
    "new\nline",
    "k=v",
    "größe",
    "\U0001f600",
    "__index_level_0__",
    "x" * 300,
    "'quoted'",
    '"',
    "Id",
    "URI",
    "Text",
    "a/b",
    "%41",
    "__HIVE_DEFAULT_PARTITION__",
    "tab\t",
    "NUL\x00here",
]
