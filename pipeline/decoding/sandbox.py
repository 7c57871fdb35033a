"""Confines a freshly forked process to decoding.

It can write no byte to a file, dumps no core, can open few files, and its output is discarded. On
Linux its memory is limited, and it ends with the process that forked it; with seccomp it can open
no sockets, start no programs and remove no files.

This limits accidents; it does not contain a compromised process, which can still read the files of
its user.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mediamill.pipeline.decoding.seccomp import block_syscalls

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD, _TRIM_THRESHOLD = 32 * 1024**2, 128 * 1024**2  # bytes; glibc takes no larger first
_MAX_OPEN_FILES = 64
_OOM_SCORE = "1000"  # the kernel kills this process first when the node is out of memory
_LIMIT_TOLERANCE = 32  # the limit may be off by one part in so many of a row's memory
_STATM_DATA = 5  # field of /proc/self/statm: pages of data and stack

Prctl = Callable[[int, int, int, int, int], int]


def load_prctl() -> Prctl | None:
    """prctl(2), with which a process ties itself to its parent; None on other systems."""
    if sys.platform != "linux":
        return None
    call: Prctl = ctypes.CDLL(None, use_errno=True).prctl
    return call


def retain_freed_memory() -> None:
    """Makes malloc keep freed memory for this process and its forks.

    glibc would return most of a row's memory to the system and request it anew for the next row:
    for a picture of a megapixel that costs a fifth of its decoding.
    """
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def enter_sandbox(parent: int, prctl: Prctl | None) -> None:
    """Confines this process for good; to be called right after the fork.

    parent: the process id of the one that forked this one.
    """
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
        # RLIMIT_CORE does not hold where the system pipes cores to a program.
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the first prctl
        os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    block_syscalls()


class MemoryLimit:
    """A limit on this process's memory, which is set anew for each row.

    Allocations beyond it fail: with MemoryError in Python, and in their own ways in libraries.
    size: bytes that a row may take on top of what the process holds before it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._statm = os.open("/proc/self/statm", os.O_RDONLY) if sys.platform == "linux" else -1
        self._page = resource.getpagesize()
        self._data_bytes = 0
        self.data_bytes()
        self._base: int | None = None  # bytes on top of which the limit is set; None = no limit

    def apply(self) -> None:
        """Sets the limit for the next row."""
        # A system call for each row would be too much for small rows.
        tolerance = self._size // _LIMIT_TOLERANCE
        if self._base is None or abs(self._data_bytes - self._base) > tolerance:
            self._base = self._data_bytes
            self._set(self._base + self._size)

    def remove(self) -> None:
        """Removes the limit, so that an error can be handled."""
        self._base = None
        self._set(None)

    def _set(self, value: int | None) -> None:
        """value: None = as high as the hard limit."""
        if self._statm < 0:
            return
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if value is None or (hard != resource.RLIM_INFINITY and value > hard):
            value = hard
        resource.setrlimit(resource.RLIMIT_DATA, (value, hard))

    def data_bytes(self) -> int:
        """Bytes of this process's private memory, used or not; 0 on other systems than Linux.

        To be called after each row: the next limit is set on top of it.
        """
        if self._statm >= 0:
            fields = os.pread(self._statm, 200, 0).split()
            self._data_bytes = int(fields[_STATM_DATA]) * self._page
        return self._data_bytes
