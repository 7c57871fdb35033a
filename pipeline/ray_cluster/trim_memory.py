"""Turns memory that is free inside this process into memory of the machine.

Allocators keep what was freed, for who asks next. A driver that has checked a large manifest asks
for little afterwards, for days. Whose memory it was is not known here.
"""

import contextlib
import ctypes

import pyarrow as pa


def trim_memory() -> None:
    """Lets go of what the allocators keep; it takes milliseconds. Any thread may call it."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # glibc's; others do it by themselves
        ctypes.CDLL(None).malloc_trim(0)
