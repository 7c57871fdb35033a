"""Makes Arrow arrays of Python values from their buffers, with exactly the memory that they need.

`pa.array` of a list takes three times as much, and imports pandas (36 MB) to see whether it is one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_MAX_BYTES = 2**31 - 1


def binary_array(values: Sequence[bytes], kind: pa.DataType | None = None) -> pa.Array:
    """An array of bytes, or of texts that are encoded. kind: binary or string."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind or pa.binary(), len(values), buffers)


def text_array(values: Sequence[str | None]) -> pa.Array:
    """An array of texts and nulls, of less than 2 GiB in all."""
    encoded = [b"" if value is None else value.encode() for value in values]
    size = sum(map(len, encoded))
    if size > _MAX_BYTES:
        raise OverflowError(f"found {size} bytes of text, expected at most {_MAX_BYTES}")
    array = binary_array(encoded, pa.string())
    if None not in values:
        return array
    present = bool_array(np.array([value is not None for value in values]))
    buffers = [present.buffers()[1], *array.buffers()[1:]]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def bool_array(values: npt.NDArray[np.bool_]) -> pa.Array:
    """An array of truth values."""
    bits = pa.py_buffer(np.packbits(values, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), values.size, [None, bits])
