"""Reads the tags of a TIFF file's first picture that its pixels need, and writes them anew.

Other tags, whatever is wrong with them or however large they are, are never looked at; nor are
further pictures of the file.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mediamill.model.errors import MediaError

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES = 266, 273, 274, 277
ROWS_PER_STRIP, STRIP_BYTES, PLANAR, PREDICTOR = 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, PROFILE, NEW_SUBFILE_TYPE = 338, 339, 347, 34675, 254
MIN_VALUE, MAX_VALUE, LOW_VALUE, HIGH_VALUE, EMPTY_VALUE = 280, 281, 340, 341, 42113
# Also: the options of fax compression, the palette, inks, JPEG tables, and YCbCr.
_FOR_PIXELS = (
    WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, SAMPLES,
    ROWS_PER_STRIP, STRIP_BYTES, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS,
    TILE_BYTES, EXTRA_SAMPLES, SAMPLE_FORMAT, 292, 293, 320, 332, 334, JPEG_TABLES,
    512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
)  # fmt: skip
_READ = [
    *_FOR_PIXELS, NEW_SUBFILE_TYPE, ORIENTATION, PROFILE, MIN_VALUE, MAX_VALUE, LOW_VALUE,
    HIGH_VALUE, EMPTY_VALUE,
]  # fmt: skip
# By tag. np.isin would import a module in the confined process.
_IS_READ = np.zeros(1 << 16, bool)
_IS_READ[_READ] = True
_PARTS = (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES)
_MAX_VALUES = 70_000  # of one tag, but for those of strips, tiles, profile and JPEG tables
# TIFF 6.0 section 2, and BigTIFF: type -> numpy's letters.
_TYPES = {
    1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4",
    11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
_RATIONAL = (5, 10)

Value = Any
"""A numpy array of a tag's values; floats for rationals."""


@dataclass(frozen=True)
class TiffTags:
    """The tags of the first picture. order: "<" or ">". has_more: whether others follow."""

    order: str
    values: Mapping[int, Value]
    has_more: bool

    def number(self, tag: int, default: int) -> int:
        """Returns the first value of a tag."""
        value = self.values.get(tag)
        return default if value is None or not value.size else int(value[0])

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Returns all values of a tag; none if it is missing."""
        value = self.values.get(tag)
        return () if value is None else tuple(int(number) for number in value)


def read_tags(data: bytes) -> TiffTags:
    """Raises MediaError decode_corrupt without a directory or a size."""
    order = "<" if data[:1] == b"I" else ">"
    is_big = 43 in data[2:4]
    word, count_form = ("u8", "u8") if is_big else ("u4", "u2")
    start = int(_one(data, f"{order}{word}", 8 if is_big else 4))
    count = int(_one(data, f"{order}{count_form}", start)) if start else 0
    entry = np.dtype(
        [("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}{word}"),
         ("value", f"V{8 if is_big else 4}")]
    )  # fmt: skip
    first = start + np.dtype(count_form).itemsize
    # A file may be cut off within its directory; the pixels may lie before it.
    count = min(count, max(0, (len(data) - first) // entry.itemsize))
    entries = np.frombuffer(data, entry, count, first) if count else np.empty(0, entry)
    values: dict[int, Value] = {}
    for field in entries[_IS_READ[entries["tag"]]]:
        if (tag := int(field["tag"])) not in values:
            value = _value(
                data, order, int(field["type"]), int(field["count"]), bytes(field["value"]), tag
            )
            if value is not None and value.size:
                values[tag] = value
    following = first + count * entry.itemsize
    has_more = 0 < int(_one(data, f"{order}{word}", following)) < len(data)
    tags = TiffTags(order, values, has_more)
    if not tags.number(WIDTH, 0) or not tags.number(HEIGHT, 0):
        raise MediaError("decode_corrupt", "the TIFF picture is damaged: its size is missing")
    return tags


def _one(data: bytes, dtype: str, offset: int) -> int:
    """Returns one number; 0 beyond the end."""
    whole = np.frombuffer(data[offset : offset + np.dtype(dtype).itemsize].ljust(8, b"\0"), "u1")
    return int(whole[: np.dtype(dtype).itemsize].view(dtype)[0])


def _value(data: bytes, order: str, kind: int, count: int, field: bytes, tag: int) -> Value | None:
    """Returns a tag's values; None for an unknown type, and for values that lie outside."""
    if kind not in _TYPES:
        return None
    count *= 2 if kind in _RATIONAL else 1
    dtype = np.dtype(f"{order}{_TYPES[kind]}")
    size = count * dtype.itemsize
    if size <= len(field):
        return np.frombuffer(field, dtype, count) if kind not in _RATIONAL else None
    offset = int(np.frombuffer(field, f"{order}u{len(field)}")[0])
    if tag not in (*_PARTS, PROFILE, JPEG_TABLES) and count > _MAX_VALUES:
        return None
    if offset + size > len(data):
        return None
    values = np.frombuffer(data, dtype, count, offset)
    if kind not in _RATIONAL:
        return values
    pairs = values.reshape(-1, 2).astype(np.float64)
    return pairs[:, 0] / pairs[:, 1] if pairs[:, 1].all() else None


def with_tags(data: bytes, order: str, values: Mapping[int, Value]) -> bytes:
    """Returns a TIFF file with the same bytes and one new directory, of the tags given."""
    tail, entries = b"", b""
    # The values of the directory lie on even offsets behind the file.
    base = len(data) + len(data) % 2
    start = base + 2 + 12 * len(values) + 4
    for tag in sorted(values):
        kind, body, count = _encoded(tag, values[tag], order)
        if len(body) <= 4:
            field = body.ljust(4, b"\0")
        else:
            field = struct.pack(f"{order}I", start + len(tail))
            tail += body + b"\0" * (len(body) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, count) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", base)
    directory = struct.pack(f"{order}H", len(values)) + entries + bytes(4)
    return b"".join((head, memoryview(data)[8:], bytes(len(data) % 2), directory, tail))


def pixel_tags(tags: TiffTags) -> dict[int, Value]:
    """Returns the tags that the pixels need."""
    return {tag: value for tag, value in tags.values.items() if tag in _FOR_PIXELS}


def _encoded(tag: int, value: Value, order: str) -> tuple[int, bytes, int]:
    """Returns (type, bytes, count) of a tag's values in a classic file."""
    value = np.asarray(value)
    if tag == JPEG_TABLES:
        return 7, value.tobytes(), value.size
    if value.dtype.kind == "f":  # YCbCrCoefficients and the like, of a careless writer
        whole = np.clip(np.rint(np.nan_to_num(value) * 10_000), 0, 2**32 - 1)
        rationals = np.stack([whole, np.full(value.shape, 10_000)], -1)
        return 5, rationals.astype(f"{order}u4").tobytes(), value.size
    if value.dtype.itemsize <= 2:
        return 3, value.astype(f"{order}u2").tobytes(), value.size
    return 4, value.astype(f"{order}u4").tobytes(), value.size
