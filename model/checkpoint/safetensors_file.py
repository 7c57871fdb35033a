"""Reads safetensors files with the safetensors library, which maps them into memory.

Pages of a mapped file count as memory of the process until the file is closed. So values are read
in blocks, and the file is opened anew after 16 MiB.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.tensor_slice import TensorSlice
from mediamill.model.errors import ModelError

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAPPED_BYTES = 16 * 1024 * 1024
_MAX_MESSAGE = 300  # characters of a library's message, which may quote the file
# What the library's messages about a damaged file mean, by how they begin.
_PROBLEMS = {
    "header too small": "it ends before its header begins",
    "header too large": "it announces a header of more than 100 MB",
    "invalid header length": "it ends within its header",
    "invalid UTF-8 in header": "its header is not UTF-8",
    "invalid JSON in header": "its header is not the JSON of the format",
    "invalid shape, data type, or offset": "a tensor has other bytes than its shape and dtype need",
    "overflow computing buffer size": "a tensor has an impossible shape",
    "invalid offset": "its tensors overlap, or there is a hole between them",
    "incomplete metadata": "its tensors do not end where the file does, as when it was cut off",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of `file`, a file of a folder. dtype: as the format spells it, such as BF16."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorCopy:
    """A stored tensor and the tensor, of any float dtype and device, that it fills.

    part: what `target` holds of it; None = all.
    """

    stored: StoredTensor
    target: torch.Tensor
    part: TensorSlice | None = None


def read_header(folder: Folder, file: str) -> list[StoredTensor]:
    """Returns the tensors of a local file, in the order of their bytes.

    Raises ModelError, naming the file, when it is missing or is not a whole safetensors file: the
    header has unknown dtypes or sizes that are not shape times dtype, or the bytes have holes or
    overlaps or do not end where the file does.
    """
    if not folder.exists(file):
        raise ModelError(f"{folder.path(file)}: found no such file, expected weights")
    with _opened(folder, file) as source:
        slices = [(name, source.get_slice(name)) for name in source.offset_keys()]
        return [
            StoredTensor(file, name, str(values.get_dtype()), tuple(values.get_shape()))
            for name, values in slices
        ]


def read_blocks(
    folder: Folder, file: str, copies: Sequence[TensorCopy]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields stored values in blocks of at most 16 MiB, each with the block of its target.

    Rows of a target beyond the stored ones are set to zero. A block is only valid until the next
    one. Raises ModelError.
    """
    blocks = deque(block for copy in copies for block in _blocks(copy))
    while blocks:
        with _opened(folder, file) as source:
            mapped = 0
            while blocks and mapped < _MAPPED_BYTES:
                name, index, size, target = blocks.popleft()
                mapped += size
                yield source.get_slice(name)[index], target


def shown_name(name: str) -> str:
    """A tensor's name for messages, whatever characters it holds."""
    return name if name.isprintable() and len(name) <= 200 else f"{name!r:.200}"


_Block = tuple[str, tuple[slice, ...], int, torch.Tensor]  # name, index, bytes in the file, target


def _blocks(copy: TensorCopy) -> Iterator[_Block]:
    stored, target, part = copy.stored, copy.target.detach(), copy.part
    row_bytes = math.prod(stored.shape[1:]) * FLOATS[stored.dtype].itemsize
    max_rows = max(1, _MAPPED_BYTES // max(1, row_bytes))
    start, stop = 0, stored.shape[0]
    columns: tuple[slice, ...] = ()
    if part is not None and part.dim == 0:
        start, stop = part.start, part.stop
    elif part is not None:
        columns = (slice(part.start, part.stop),)
    for first in range(start, stop, max_rows):
        last = min(first + max_rows, stop)
        index = (slice(first, last), *columns)
        yield stored.name, index, (last - first) * row_bytes, target[first - start : last - start]
    target[max(0, stop - start) :].zero_()


@contextmanager
def _opened(folder: Folder, file: str) -> Iterator[Any]:
    where = folder.path(file)
    try:
        with safe_open(folder.full(file), framework="pt") as source:
            yield source
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        known = next((text for key, text in _PROBLEMS.items() if reason.startswith(key)), "")
        detail = "".join(char if char.isprintable() else "?" for char in reason[:_MAX_MESSAGE])
        raise ModelError(
            f"{where} is not a whole safetensors file: {known}{f' ({detail})' if known else detail}"
        ) from None
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error}") from None
