"""Turns memory that nothing refers to any more into memory for the next bytes.

The system gives new memory page by page, which costs more than what is done with it: a multiple of
the copy. What lies in it is not known here.
"""

import mmap
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 256 * 1024**2  # that wait to be used again, in one process
_BLOCK = 2 * 1024**2  # bytes of the smallest block
_SHELF = 32 * 1024**2  # bytes of the blocks of a shelf; those that are not used are not taken


class BufferPool:
    """Places for bytes; threads may share it.

    A place goes back when nothing refers to the array, a view of it or an Arrow buffer on it.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        """kept_bytes: of places that wait; beyond it they are given back to the system."""
        self._kept_bytes = kept_bytes
        # Places come back whenever the last reference goes, in any thread and within any line:
        # nothing here takes a lock.
        self._free: dict[int, deque[mmap.mmap]] = {}

    def place(self, size: int) -> npt.NDArray[np.uint8]:
        """uint8 [size]; what was in it before is there still. Raises OSError without memory."""
        if not size:
            return np.empty(0, np.uint8)
        whole = _BLOCK << (-(-size // _BLOCK) - 1).bit_length()
        block = self._block(whole)
        array = np.frombuffer(block, np.uint8)
        # Of views of a view, numpy keeps the first one alive: it is the one to wait for.
        weakref.finalize(array, self._give, block).atexit = False
        return array[:size]

    def shelf(self) -> "Arena":
        """Room for many small things, one after the other."""
        return Arena(self)

    def _block(self, size: int) -> mmap.mmap:
        free = self._free.setdefault(size, deque())
        with suppress(IndexError):
            return free.pop()
        return mmap.mmap(-1, size)

    def _give(self, block: mmap.mmap) -> None:
        kept = sum(size * len(free) for size, free in list(self._free.items()))
        if kept + len(block) <= self._kept_bytes:
            self._free[len(block)].append(block)


class Arena:
    """Rooms in warm memory, for one thread: each begins where the one before it ends, as far as
    there is room. What lies side by side needs no copy to be one.
    """

    def __init__(self, warm: BufferPool) -> None:
        self._warm = warm
        self._left = np.empty(0, np.uint8)

    def room(self, size: int) -> npt.NDArray[np.uint8]:
        """uint8 [size], nobody else's. Raises OSError without memory."""
        if size > self._left.size:
            self._left = self._warm.place(max(size, _SHELF))
        found, self._left = self._left[:size], self._left[size:]
        return found
