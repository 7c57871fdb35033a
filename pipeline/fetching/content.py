"""Turns pieces of one medium, as they arrive, into its whole content: in memory, or in a file.

Media beyond a size go to a temporary file, so that a process can hold several of any size.
Where the pieces come from is not known.
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.storage.retries import Deadline, IncompleteError
from mediamill.schemas.errors import ErrorCode, RowError

MEMORY_BYTES = 64 * 1024 * 1024
_LEAST, _STEP = 256 * 1024, 8 * 1024 * 1024  # room that a content of unknown size takes at once


class _Hold:
    """Stands for a file's room in the budget."""


@dataclass(frozen=True)
class FetchedMedium:
    """A whole content: `data` (uint8), or the `path` of a temporary file. Its room in the budget is
    given back when nobody holds the data, or for a file the `hold`, any more.
    """

    size: int
    data: npt.NDArray[np.uint8] | None
    path: Path | None = None
    hold: object = None


class FetchedContent:
    """A medium that is being fetched. Several threads may write, each to its own place."""

    def __init__(
        self,
        room: Reservation,
        spool: Spool,
        max_bytes: int,
        deadline: Deadline,
        memory_bytes: int | None = None,
    ) -> None:
        self._room, self._spool, self._max = room, spool, max_bytes
        self._memory_bytes = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._deadline = deadline
        self._memory: npt.NDArray[np.uint8] = _empty(0)
        self._file: int | None = None
        self._path: Path | None = None
        self._reserved = 0  # while the size is unknown
        self.total: int | None = None

    def expect(self, total: int) -> None:
        """So many bytes will come, from the first on; makes room for them, and waits for it.

        Raises RowError, fetch_too_large; OSError when the disk is full.
        """
        self.reset()
        self._check(total)
        with self._deadline.paused():
            self._room.resize(total)
        self.total = total
        if total > self._memory_bytes:
            self._to_file()
        else:
            self._memory = _empty(total)

    def write(self, start: int, piece: bytes | memoryview) -> None:
        """Puts bytes in their place. Raises IncompleteError beyond the expected size, RowError."""
        end = start + len(piece)
        if self.total is not None:
            if end > self.total:
                raise IncompleteError(f"got more than the {self.total} bytes that were announced")
        else:
            self._make_room(end)
        if self._file is None:
            self._memory[start:end] = np.frombuffer(piece, np.uint8)
            return
        written = 0
        while written < len(piece):
            written += os.pwrite(self._file, piece[written:], start + written)

    def reset(self) -> None:
        """Forgets what came."""
        self._drop_file()
        self._memory = _empty(0)
        self._reserved = 0
        self.total = None

    def finish(self, size: int) -> FetchedMedium:
        """The medium of the first `size` bytes."""
        self._room.resize(size)
        if self._file is None:
            data = self._memory[:size]
            if len(self._memory) > size:
                data = data.copy()  # or the room of what came too much would stay taken
            self._room.keep_for(data)
            return FetchedMedium(size, data)
        os.ftruncate(self._file, size)
        os.close(self._file)
        self._file = None
        hold = _Hold()
        self._room.keep_for(hold)
        return FetchedMedium(size, None, self._path, hold)

    def abandon(self) -> None:
        """Gives everything back."""
        self.reset()
        self._room.resize(0)

    def digest(self, algorithm: str, size: int) -> bytes:
        """The hash of the first `size` bytes."""
        if self._file is None:
            return hashlib.new(algorithm, self._memory[:size].data, usedforsecurity=False).digest()
        found = hashlib.new(algorithm, usedforsecurity=False)
        for start in range(0, size, _STEP):
            found.update(os.pread(self._file, min(_STEP, size - start), start))
        return found.digest()

    def _make_room(self, end: int) -> None:
        """For bytes of a content whose size nobody has said."""
        self._check(end)
        if end <= self._reserved:
            return
        self._reserved = min(max(end, 2 * self._reserved, _LEAST), end + _STEP)
        with self._deadline.paused():
            self._room.resize(self._reserved)
        if self._reserved > self._memory_bytes:
            self._to_file()
        else:
            grown = _empty(self._reserved)
            grown[: len(self._memory)] = self._memory
            self._memory = grown

    def _to_file(self) -> None:
        if self._file is not None:
            return
        self._path = self._spool.new()
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if self._memory.size:
            os.pwrite(self._file, self._memory.data, 0)
        self._memory = _empty(0)

    def _drop_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None
        if self._path is not None:
            Spool.release([self._path])
            self._path = None

    def _check(self, size: int) -> None:
        if size > self._max:
            raise RowError(
                ErrorCode.FETCH_TOO_LARGE,
                f"found at least {size} bytes, expected at most limits.max_bytes = {self._max}",
            )


def _empty(size: int) -> npt.NDArray[np.uint8]:
    return np.empty(size, np.uint8)
