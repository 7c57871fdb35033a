"""Turns the part of a stored tensor that a rank holds into what has to be read of its file.

Rows lie in one piece and are read as they are. Columns of a local file are read row by row, which
moves little more than they are; of a remote file all rows pass by, and the columns are kept.
"""

import os
from dataclasses import replace
from pathlib import Path

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.safetensors_file import SIZES, StoredTensor
from mediamill.model.checkpoint.stored_values import FLOATS, read_values
from mediamill.model.checkpoint.tensor_slice import TensorSlice
from mediamill.model.errors import ModelError

_BLOCK = 8 * 1024 * 1024  # bytes of columns that are gathered before they are copied


def row_parts(
    stored: StoredTensor, target: torch.Tensor, part: TensorSlice | None
) -> list[tuple[StoredTensor, torch.Tensor]]:
    """Spans of rows of a stored tensor, each with the rows of `target` that it fills; what none
    fills is set to zero. Empty for a part that is columns.
    """
    target = target.detach()
    if part is None:
        return [(stored, target)]
    if part.dim != 0:
        return []
    row = (stored.stop - stored.start) // max(1, stored.shape[0])
    found = []
    filled = 0
    for first, last in part.spans:
        if last > first:
            shape = (last - first, *stored.shape[1:])
            start, stop = stored.start + first * row, stored.start + last * row
            piece = replace(stored, shape=shape, start=start, stop=stop)
            found.append((piece, target[filled : filled + last - first]))
            filled += last - first
    target[filled:].zero_()
    return found


def read_columns(
    folder: Folder, file: str, stored: StoredTensor, target: torch.Tensor, span: tuple[int, int]
) -> None:
    """Fills target [rows, stop - start] with columns `span` of a stored matrix. Raises
    ModelError.
    """
    first, last = span
    rows, width = stored.shape
    unit = SIZES[stored.dtype]
    target = target.detach()
    if not folder.is_local:
        at = 0
        for _, _, values in read_values(folder, file, [stored], unit=width * unit):
            block = values.view(-1, width)[:, first:last]
            target[at : at + len(block)].copy_(block)
            at += len(block)
        return
    size = (last - first) * unit
    most = max(1, _BLOCK // size)
    buffer = torch.empty(min(most, rows) * size, dtype=torch.uint8)
    memory = buffer.numpy().data
    try:
        with Path(folder.full(file)).open("rb", buffering=0) as source:
            for start in range(0, rows, most):
                count = min(most, rows - start)
                for row in range(count):
                    place = stored.start + ((start + row) * width + first) * unit
                    _read_at(source.fileno(), memory[row * size : (row + 1) * size], place)
                block = buffer[: count * size].view(FLOATS[stored.dtype]).view(count, -1)
                target[start : start + count].copy_(block)
    except OSError as error:
        raise ModelError(f"{folder.path(file)} cannot be read: {error}") from None


def _read_at(descriptor: int, memory: memoryview, place: int) -> None:
    while memory:
        count = os.preadv(descriptor, [memory], place)
        if not count:
            raise OSError(f"the file ended {len(memory)} bytes early, while it was read")
        memory, place = memory[count:], place + count
