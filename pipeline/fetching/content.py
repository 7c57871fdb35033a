"""Assembles one medium from the chunks of its transfer, in memory or in a spooled file if large."""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.storage.local_files import write_at
from mediamill.pipeline.storage.retries import Deadline, IncompleteError
from mediamill.schemas.errors import ErrorCode, RowError

MEMORY_BYTES = 64 * 1024 * 1024
# While the size is unknown, the reservation starts with this and grows by at most that.
_INITIAL_BYTES, _GROWTH_BYTES = 256 * 1024, 8 * 1024 * 1024


class Owner:
    """Stands for the use of a medium: what it holds is released when it is garbage-collected."""


@dataclass(frozen=True)
class FetchedMedium:
    """One medium of `size` bytes, in memory or in a file.

    data: the content; None for a file.
    path: the file; the receiver removes it with `Spool.release`.
    owner: the budget reservation lives as long as `data`, or for a file, as long as this object.
    """

    size: int
    data: npt.NDArray[np.uint8] | None
    path: Path | None = None
    owner: object = None


class FetchedContent:
    """A medium that is being fetched. Several threads may write, each its own byte range."""

    def __init__(
        self,
        reservation: Reservation,
        spool: Spool,
        max_bytes: int,
        deadline: Deadline,
        memory_bytes: int | None = None,
    ) -> None:
        self._reservation, self._spool, self.max_bytes = reservation, spool, max_bytes
        self._memory_bytes = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._deadline = deadline
        self._memory: npt.NDArray[np.uint8] = _empty(0)
        self._file: int | None = None
        self._spool_path: Path | None = None
        self._capacity = 0  # bytes that are reserved while the size is unknown
        self.total: int | None = None

    def expect(self, total: int) -> None:
        """Starts anew for a content of `total` bytes; waits until they are reserved.

        Raises RowError, fetch_too_large; OSError when the disk is full.
        """
        self.reset()
        self._check_size(total)
        with self._deadline.paused():
            self._reservation.resize(total)
        self.total = total
        if total > self._memory_bytes:
            self._spill()
        else:
            self._memory = _empty(total)

    def write(self, start: int, chunk: bytes | memoryview) -> None:
        """Writes bytes at an offset. Raises IncompleteError beyond the expected size; RowError."""
        end = start + len(chunk)
        if self.total is None:
            self._grow(end)
        elif end > self.total:
            raise IncompleteError(f"got more than the {self.total} bytes that were announced")
        if self._file is None:
            self._memory[start:end] = np.frombuffer(chunk, np.uint8)
            return
        write_at(self._file, chunk, start)

    def reset(self) -> None:
        """Discards all bytes."""
        self._remove_file()
        self._memory = _empty(0)
        self._capacity = 0
        self.total = None

    def finish(self, size: int) -> FetchedMedium:
        """Returns the medium, which consists of the first `size` bytes."""
        self._reservation.resize(size)
        if self._file is None:
            data = self._memory[:size]
            if len(self._memory) > size:
                data = data.copy()  # a view would keep the memory of the surplus bytes
            self._reservation.bind_to(data)
            return FetchedMedium(size, data)
        os.ftruncate(self._file, size)
        os.close(self._file)
        self._file = None
        owner = Owner()
        self._reservation.bind_to(owner)
        return FetchedMedium(size, None, self._spool_path, owner)

    def abandon(self) -> None:
        """Discards all bytes and releases the reservation."""
        self.reset()
        self._reservation.resize(0)

    def digest(self, algorithm: str, size: int) -> bytes:
        """Returns the hash of the first `size` bytes."""
        if self._file is None:
            return hashlib.new(algorithm, self._memory[:size].data, usedforsecurity=False).digest()
        hasher = hashlib.new(algorithm, usedforsecurity=False)
        for start in range(0, size, _GROWTH_BYTES):
            hasher.update(os.pread(self._file, min(_GROWTH_BYTES, size - start), start))
        return hasher.digest()

    def _grow(self, end: int) -> None:
        """Makes the capacity at least `end` bytes, for a content of unknown size."""
        self._check_size(end)
        if end <= self._capacity:
            return
        self._capacity = min(max(end, 2 * self._capacity, _INITIAL_BYTES), end + _GROWTH_BYTES)
        with self._deadline.paused():
            self._reservation.resize(self._capacity)
        if self._capacity > self._memory_bytes:
            self._spill()
        else:
            grown = _empty(self._capacity)
            grown[: len(self._memory)] = self._memory
            self._memory = grown

    def _spill(self) -> None:
        if self._file is not None:
            return
        self._spool_path = self._spool.new()
        self._file = os.open(self._spool_path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if self._memory.size:
            write_at(self._file, self._memory.data, 0)
        self._memory = _empty(0)

    def _remove_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None
        if self._spool_path is not None:
            Spool.release([self._spool_path])
            self._spool_path = None

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise RowError(
                ErrorCode.FETCH_TOO_LARGE,
                f"found at least {size} bytes, "
                f"expected at most limits.max_bytes = {self.max_bytes}",
            )


def _empty(size: int) -> npt.NDArray[np.uint8]:
    return np.empty(size, np.uint8)
