"""A pool of buffers that are used again when nothing refers to them any more.

The system zeroes new memory page by page, which costs several times what a copy does.
"""

import mmap
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
import numpy.typing as npt

RETAINED_BYTES = 256 * 1024**2  # of free blocks, in one process
_MIN_BLOCK = 2 * 1024**2  # bytes
_ARENA_BLOCK = 32 * 1024**2  # bytes; the system allocates those that are written


class BufferPool:
    """Buffers of any size. Several threads may call it.

    A buffer returns to the pool when nothing refers to the array, a view of it or an Arrow buffer
    on it.
    retained_bytes: of free blocks; more are returned to the system.
    """

    def __init__(self, retained_bytes: int = RETAINED_BYTES) -> None:
        self._retained_bytes = retained_bytes
        # Finalizers return blocks in any thread, in the middle of any line: no lock may be taken.
        self._free: dict[int, deque[mmap.mmap]] = {}

    def allocate(self, size: int) -> npt.NDArray[np.uint8]:
        """uint8 [size], with any content. Raises OSError without memory."""
        if not size:
            return np.empty(0, np.uint8)
        block_size = _MIN_BLOCK << (-(-size // _MIN_BLOCK) - 1).bit_length()
        block = self._block(block_size)
        array = np.frombuffer(block, np.uint8)
        # A view of a view refers to the first array in numpy, so that one is finalized last.
        weakref.finalize(array, self._release, block).atexit = False
        return array[:size]

    def _block(self, size: int) -> mmap.mmap:
        free = self._free.setdefault(size, deque())
        with suppress(IndexError):
            return free.pop()
        return mmap.mmap(-1, size)

    def _release(self, block: mmap.mmap) -> None:
        retained = sum(size * len(free) for size, free in list(self._free.items()))
        if retained + len(block) <= self._retained_bytes:
            self._free[len(block)].append(block)


class Arena:
    """Allocates contiguous small buffers within a block of a pool, for one thread.

    Contiguous buffers can become one Arrow column without a copy.
    """

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._free = np.empty(0, np.uint8)

    def allocate(self, size: int) -> npt.NDArray[np.uint8]:
        """uint8 [size], with any content. Raises OSError without memory."""
        if size > self._free.size:
            self._free = self._pool.allocate(max(size, _ARENA_BLOCK))
        array, self._free = self._free[:size], self._free[size:]
        return array
