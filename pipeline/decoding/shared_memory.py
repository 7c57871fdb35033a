"""Memory that two processes share: on Linux a sealed memfd.

One mapping serves many rows, since new memory costs more than the copies into it.
"""

import fcntl
import mmap
import os
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RETAINED_BYTES = 64 * 1024**2  # that stay allocated between two rows


class SharedMemory:
    """A mapping of `size` bytes of the memory `fd`; the system allocates those that are written."""

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(fd, size)
        self._used = 0

    @classmethod
    def create(cls, size: int) -> tuple["SharedMemory", int]:
        """New memory, and the file descriptor to send to the other process; the caller closes it.

        Raises OSError.
        """
        fd = _create_file(size)
        try:
            return cls(fd, size), fd
        except BaseException:
            os.close(fd)
            raise

    def write(self, parts: Sequence[memoryview]) -> None:
        """Writes the parts at the beginning, one after the other.

        Raises ValueError when they do not fit.
        """
        total = sum(part.nbytes for part in parts)
        if total > self.size:
            raise ValueError(f"found {total} bytes, expected at most {self.size}")
        offset = 0
        for part in parts:
            self._map[offset : offset + part.nbytes] = part
            offset += part.nbytes
        self._used = max(self._used, total)

    def read(self, offset: int, size: int) -> bytes:
        """A copy of `size` bytes."""
        return self._map[offset : offset + size]

    def read_into(self, offset: int, array: npt.NDArray[np.uint8]) -> None:
        """Copies into the array, so that the other process can no longer change the bytes."""
        self._used = max(self._used, offset + array.size)
        with memoryview(self._map) as view:
            array[:] = view[offset : offset + array.size]

    def trim(self) -> None:
        """Frees what exceeds RETAINED_BYTES."""
        if self._used > RETAINED_BYTES:
            if sys.platform == "linux":
                self._map.madvise(mmap.MADV_REMOVE, RETAINED_BYTES, self.size - RETAINED_BYTES)
            self._used = RETAINED_BYTES

    def close(self) -> None:
        """Unmaps the memory in this process."""
        self._map.close()


def _create_file(size: int) -> int:
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            return os.dup(file.fileno())
    fd = os.memfd_create("media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    # If the other process could shrink it, it could kill this one with SIGBUS.
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd
