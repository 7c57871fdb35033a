"""Turns the descriptions of stored tensors into their values, straight into place.

Files are on local disk or at any fsspec URL, and are read in bounded parts, so that the peak of
memory is the tensors that are filled and little else. Knows no network and no names.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.safetensors_file import SIZES, StoredTensor
from mediamill.model.errors import ModelError

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 32 * 1024 * 1024  # bytes of a local file that are read at once
_RANGE = 4 * 1024 * 1024  # bytes of one request for a remote file
_IN_FLIGHT = 4  # such requests at a time


@dataclass(frozen=True)
class _Piece:
    """Consecutive values of one tensor: from the value `first` on, in bytes `start` to `stop`."""

    tensor: StoredTensor
    first: int
    start: int
    stop: int


def read_into(
    folder: Folder, file: str, wanted: Sequence[tuple[StoredTensor, torch.Tensor]]
) -> None:
    """Fills contiguous tensors of any float dtype and device with stored ones of their shape.

    The bytes of a local file are read straight into a tensor of their own dtype in CPU memory.
    Other values pass through one buffer of at most 32 MiB; of a remote file four requests of 4 MiB
    are in flight. Raises ModelError.
    """
    rest: dict[StoredTensor, torch.Tensor] = {}
    with _opened(folder, file) as source:
        for stored, target in wanted:
            flat = target.detach().view(-1)
            same = flat.device.type == "cpu" and flat.dtype == FLOATS[stored.dtype]
            if source is None or not same:
                rest[stored] = flat
                continue
            memory = _memory(flat.view(torch.uint8))
            for start in range(0, len(memory), _CHUNK):
                _fill(source, stored.start + start, memory[start : start + _CHUNK])
    pinned = any(flat.device.type == "cuda" for flat in rest.values())
    for stored, first, values in read_values(folder, file, list(rest), pinned):
        rest[stored][first : first + len(values)].copy_(values)


def read_values(
    folder: Folder,
    file: str,
    tensors: Sequence[StoredTensor],
    pinned: bool = False,
    unit: int = 1,
) -> Iterator[tuple[StoredTensor, int, torch.Tensor]]:
    """The values of float tensors bit by bit: the tensor, the place of the first value in it, and
    values [n] in the dtype of the file, which are good until the next ones are asked for.

    pinned: they lie in memory from which a GPU copies fast. unit: bytes that come together, such as
    a row of a matrix. Raises ModelError.
    """
    limit = _CHUNK if folder.is_local else _RANGE
    pieces = _pieces(tensors, max(1, limit // unit) * unit)
    if not pieces:
        return
    room = max(piece.stop - piece.start for piece in pieces)
    buffer = torch.empty(room, dtype=torch.uint8, pin_memory=pinned)
    memory = _memory(buffer)
    with _opened(folder, file) as source:
        # At the front of the buffer every dtype is aligned; in the file none need be.
        fetched = _fetched(folder, file, pieces) if source is None else ((p, None) for p in pieces)
        for piece, content in fetched:
            count = piece.stop - piece.start
            if source is not None:
                _fill(source, piece.start, memory[:count])
            elif content is not None:
                memory[:count] = content
            yield piece.tensor, piece.first, buffer[:count].view(FLOATS[piece.tensor.dtype])


def _pieces(tensors: Sequence[StoredTensor], limit: int) -> list[_Piece]:
    """The tensors in the order of the file, in parts of at most `limit` bytes."""
    return [
        _Piece(one, (start - one.start) // SIZES[one.dtype], start, min(start + limit, one.stop))
        for one in sorted(tensors, key=lambda one: one.start)
        for start in range(one.start, one.stop, limit)
    ]


def _fetched(
    folder: Folder, file: str, pieces: Sequence[_Piece]
) -> Iterator[tuple[_Piece, memoryview]]:
    """Pieces of a remote file with their bytes, in order; neighbours share a request."""
    runs: list[list[_Piece]] = []
    for piece in pieces:
        run = runs[-1] if runs else []
        if run and run[-1].stop == piece.start and piece.stop - run[0].start <= _RANGE:
            run.append(piece)
        else:
            runs.append([piece])
    waiting: deque[tuple[list[_Piece], Future[bytes]]] = deque()
    pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="weights")
    try:
        for number in range(len(runs) + _IN_FLIGHT - 1):
            if number < len(runs):
                run = runs[number]
                waiting.append(
                    (run, pool.submit(folder.read_range, file, run[0].start, run[-1].stop))
                )
            if number >= _IN_FLIGHT - 1 and waiting:
                run, future = waiting.popleft()
                content = memoryview(future.result())
                for piece in run:
                    start = piece.start - run[0].start
                    yield piece, content[start : start + piece.stop - piece.start]
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _opened(folder: Folder, file: str) -> Iterator[RawIOBase | None]:
    """The local file, unbuffered; None of a remote one."""
    if not folder.is_local:
        yield None
        return
    try:
        with Path(folder.full(file)).open("rb", buffering=0) as source:
            yield source
    except OSError as error:
        raise ModelError(f"{folder.path(file)} cannot be read: {error}") from None


def _memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a uint8 tensor in CPU memory, to be written."""
    return tensor.numpy().data


def _fill(source: RawIOBase, position: int, memory: memoryview) -> None:
    """Reads as many bytes as `memory` has. Raises OSError when the file ends before."""
    source.seek(position)
    while memory:
        count = source.readinto(memory)
        if not count:
            raise OSError(f"the file ended {len(memory)} bytes early, while it was read")
        memory = memory[count:]
