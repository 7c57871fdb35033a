"""Returns freed memory of this process to the operating system.

Allocators keep freed memory for later allocations. A driver that has checked a large manifest
allocates little afterwards, for days.
"""

import contextlib
import ctypes

import pyarrow as pa


def trim_memory() -> None:
    """Releases free memory of the allocators, in milliseconds. Thread-safe."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # only glibc needs it
        ctypes.CDLL(None).malloc_trim(0)
