"""Builds one Arrow column of the bytes of rows, without copying those that are contiguous.

Arrow's own builder copies all of them into new memory.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mediamill.pipeline.decoding.buffer_pool import BufferPool

_MAX_CHUNKS = 8  # of a column: the next stage works on one after the other
_TYPE = pa.large_binary()


def binary_column(values: Sequence[memoryview | None], pool: BufferPool) -> pa.ChunkedArray:
    """Returns large_binary [rows], equal to what pa.array makes of the values.

    values: with items of one byte; nothing may write to them afterwards. Those of more than
        _MAX_CHUNKS contiguous runs are copied into a buffer of the pool.
    Raises OSError without memory.
    """
    runs = _contiguous_runs(values)
    if len(runs) > _MAX_CHUNKS:
        return pa.chunked_array([_copy(values, pool)], _TYPE)
    chunks = []
    for start, stop, address in runs:
        run = values[start:stop]
        size = sum(map(_size, run))
        # The buffer refers to the run, so that the pool does not reuse the memory of its values.
        data = pa.foreign_buffer(address, size, base=run) if size else pa.py_buffer(b"")
        chunks.append(_array(run, data))
    return pa.chunked_array(chunks, _TYPE)


def _size(value: memoryview | None) -> int:
    return 0 if value is None else value.nbytes


def _contiguous_runs(values: Sequence[memoryview | None]) -> list[tuple[int, int, int]]:
    """First row, row after the last, and address of the first byte, of each contiguous run."""
    runs = []
    start = address = end = 0
    for row, value in enumerate(values):
        if value is None or not value.nbytes:
            continue
        begin = np.asarray(value).__array_interface__["data"][0]
        if end and begin != end:
            runs.append((start, row, address))
            start, address = row, begin
        address = address or begin
        end = begin + value.nbytes
    return [*runs, (start, len(values), address)] if values else []


def _copy(values: Sequence[memoryview | None], pool: BufferPool) -> pa.LargeBinaryArray:
    data = pool.allocate(sum(map(_size, values)))
    offset = 0
    for value in values:
        if value is not None:
            data[offset : offset + value.nbytes] = value
            offset += value.nbytes
    return _array(values, pa.py_buffer(data))


def _array(values: Sequence[memoryview | None], data: pa.Buffer) -> pa.LargeBinaryArray:
    """The values, whose bytes are in `data` one after the other."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([_size(value) for value in values], out=offsets[1:])
    valid = np.array([value is not None for value in values], bool)
    bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(_TYPE, len(values), [bitmap, pa.py_buffer(offsets), data])
