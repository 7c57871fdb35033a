"""Turns bytes of one process into bytes of another: memory that the two share.

It is made once and used for one row after the other, since memory that is new costs more than what
is done with it. What lies in it is not known here.
"""

import fcntl
import mmap
import os
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 64 * 1024**2  # that stay taken between two uses


class SharedMemory:
    """A place for `size` bytes; only those that have been written are really taken."""

    def __init__(self, handle: int, size: int) -> None:
        """handle: of the memory that another process has made."""
        self.size = size
        self._map = mmap.mmap(handle, size)
        self._used = 0

    @classmethod
    def new(cls, size: int) -> tuple["SharedMemory", int]:
        """SharedMemory that nobody shares yet, and the handle for who is to; the caller closes it.

        Raises OSError.
        """
        handle = _file(size)
        try:
            return cls(handle, size), handle
        except BaseException:
            os.close(handle)
            raise

    def write(self, parts: Sequence[memoryview]) -> None:
        """Puts bytes at the beginning, one part after the other. Raises ValueError for too many."""
        total = sum(part.nbytes for part in parts)
        if total > self.size:
            raise ValueError(f"found {total} bytes, expected at most {self.size}")
        at = 0
        for part in parts:
            self._map[at : at + part.nbytes] = part
            at += part.nbytes
        self._used = max(self._used, total)

    def read(self, at: int, count: int) -> bytes:
        """So many bytes from a place on."""
        return self._map[at : at + count]

    def read_into(self, at: int, array: npt.NDArray[np.uint8]) -> None:
        """Copies from a place on; what the array holds no other process can change."""
        self._used = max(self._used, at + array.size)
        with memoryview(self._map) as view:
            array[:] = view[at : at + array.size]

    def trim(self) -> None:
        """Gives back what one large row has taken."""
        if self._used > KEPT_BYTES:
            if sys.platform == "linux":
                self._map.madvise(mmap.MADV_REMOVE, KEPT_BYTES, self.size - KEPT_BYTES)
            self._used = KEPT_BYTES

    def close(self) -> None:
        """Ends the use here."""
        self._map.close()


def _file(size: int) -> int:
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            return os.dup(file.fileno())
    handle = os.memfd_create("media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(handle, size)
    # If its size could change, the other process could end this one while it reads.
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
    return handle
