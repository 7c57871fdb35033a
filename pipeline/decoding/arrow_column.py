"""Turns the bytes of rows into one Arrow column, without a copy where they lie side by side.

Arrow's own builder takes new memory as the column grows. What the bytes are is not known here.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mediamill.pipeline.decoding.buffer_pool import BufferPool

_CHUNKS = 8  # of a column at most: what comes after works on one after the other
_TYPE = pa.large_binary()


def binary_column(values: Sequence[memoryview | None], warm: BufferPool) -> pa.ChunkedArray:
    """large_binary [rows]: the same as pa.array would hold.

    values: of one byte an item; nobody may write to them any more. Those that do not follow each
    other in memory are copied. What the column holds goes back to `warm` in the end. Raises OSError
    without memory.
    """
    runs = _runs(values)
    if len(runs) > _CHUNKS:
        return pa.chunked_array([_copied(values, warm)], _TYPE)
    chunks = []
    for start, stop, address in runs:
        run = values[start:stop]
        size = sum(0 if one is None else one.nbytes for one in run)
        # The run itself keeps the memory of each value from being used again.
        data = pa.foreign_buffer(address, size, base=run) if size else pa.py_buffer(b"")
        chunks.append(_array(run, data))
    return pa.chunked_array(chunks, _TYPE)


def _runs(values: Sequence[memoryview | None]) -> list[tuple[int, int, int]]:
    """Rows from, to, and the address of the first byte, of values that lie side by side."""
    runs = []
    start = address = end = 0
    for row, value in enumerate(values):
        if value is None or not value.nbytes:
            continue
        at = np.asarray(value).__array_interface__["data"][0]
        if end and at != end:
            runs.append((start, row, address))
            start, address = row, at
        address = address or at
        end = at + value.nbytes
    return [*runs, (start, len(values), address)] if values else []


def _copied(values: Sequence[memoryview | None], warm: BufferPool) -> pa.LargeBinaryArray:
    data = warm.place(sum(0 if one is None else one.nbytes for one in values))
    at = 0
    for value in values:
        if value is not None:
            data[at : at + value.nbytes] = value
            at += value.nbytes
    return _array(values, pa.py_buffer(data))


def _array(values: Sequence[memoryview | None], data: pa.Buffer) -> pa.LargeBinaryArray:
    """The values, whose bytes are in `data` one after the other."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([0 if one is None else one.nbytes for one in values], out=offsets[1:])
    there = np.array([one is not None for one in values], bool)
    present = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.Array.from_buffers(_TYPE, len(values), [present, pa.py_buffer(offsets), data])
