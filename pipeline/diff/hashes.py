"""Hashes the values of columns, so that rows of two outputs can be compared without the values."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mediamill.pipeline.inspect.output import shown_value

Hashes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
_VECTORS = 1024  # that are hashed at once
_ODD = np.uint64(0x9E3779B97F4A7C15)


def key_hashes(ids: pa.ChunkedArray) -> Hashes:
    """Returns a hash of each id; whole numbers have those of their digits."""
    if pa.types.is_integer(ids.type):
        ids = ids.cast(pa.string())
    return _of_objects(ids)


def value_hashes(column: pa.ChunkedArray) -> Hashes:
    """Returns a hash of each value, of any type; equal values have equal ones."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        values = column.cast(pa.float64(), safe=False).to_numpy()
        hashes: Hashes = pd.util.hash_array(values)
        return hashes
    return _of_objects(column)


def _of_objects(column: pa.ChunkedArray) -> Hashes:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # As bytes: a text may hold half a surrogate pair, which Python's text cannot.
        column = column.cast(pa.large_binary())
        values = column.to_numpy()
        present = [b"" if value is None else b"." + value for value in values.tolist()]
    else:
        values = [shown_value(value) for value in column]
        present = [
            b"" if value is None else b"." + json.dumps(value, default=str).encode()
            for value in values
        ]
    texts = np.array([value.decode("latin-1") for value in present], dtype=object)
    hashes: Hashes = pd.util.hash_array(texts, categorize=False)
    return hashes


def vector_hashes(column: pa.ChunkedArray) -> Hashes:
    """Returns a hash of each vector; 0 for none."""
    hashes = [np.zeros(0, np.uint64)]
    for chunk in column.chunks:
        for start in range(0, len(chunk), _VECTORS):
            part = chunk.slice(start, _VECTORS)
            bits = part.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
            lengths = pc.fill_null(pc.list_value_length(part), 0).to_numpy(zero_copy_only=False)
            hashes.append(_sums(bits.view(np.uint32).astype(np.uint64), lengths))
    return np.concatenate(hashes)


def ranking_hashes(column: pa.ChunkedArray) -> tuple[Hashes, Hashes]:
    """Returns a hash of the whole ranking of each row's scores, and one of its best text."""
    flat = pc.list_flatten(column.combine_chunks())
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    texts = _of_objects(pa.chunked_array([pc.struct_field(flat, "text")]))
    ranks = pc.fill_null(pc.struct_field(flat, "rank"), 0).to_numpy(zero_copy_only=False)
    ranks = ranks.astype(np.uint64)
    whole = texts * (2 * ranks + 1) + ranks * _ODD
    best = np.where(ranks == 1, texts, np.uint64(0))
    return _sums(whole, lengths, False), _sums(best, lengths, False)


def _sums(values: Hashes, lengths: npt.NDArray[Any], ordered: bool = True) -> Hashes:
    """The sum of each row's values, modulo 2 ** 64; weighted by their place if `ordered`."""
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    if ordered and values.size:
        places = np.arange(values.size) - np.repeat(ends - lengths, lengths)
        values = values * _ODD
        values ^= values >> np.uint64(32)  # else weights and values could be exchanged
        values *= places.astype(np.uint64) * np.uint64(2) + np.uint64(1)
    totals = np.concatenate(([np.uint64(0)], np.cumsum(values, dtype=np.uint64)))
    sums: Hashes = totals[ends] - totals[ends - lengths]
    return sums


def frame_hashes(column: pa.ChunkedArray) -> tuple[Hashes, Floats]:
    """Returns a hash of each row's frame times, and their number (0 for none)."""
    flat = pc.list_flatten(column).combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    times = flat.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return _sums(times.view(np.uint64), lengths), lengths.astype(np.float64)


def seen_hashes(column: pa.ChunkedArray) -> Hashes:
    """Returns a hash of the pixels of each row's media, from its receipts."""
    flat = pc.list_flatten(column).combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    if flat.type.get_field_index("seen_sha256") < 0:
        return np.zeros(len(column), np.uint64)
    pixels = _of_objects(pa.chunked_array([pc.struct_field(flat, "seen_sha256")]))
    return _sums(pixels, lengths)


def numbers(column: pa.ChunkedArray) -> Floats:
    """Returns a column as numbers; NaN for null."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def text_lengths(column: pa.ChunkedArray) -> Floats:
    """Returns the characters of each text; NaN for null."""
    return numbers(pc.utf8_length(column))
