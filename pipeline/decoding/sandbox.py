"""Turns a fresh fork into a process that may decode and little else.

What holds on Linux: memory has a ceiling, no byte of a file can be written, no core is dumped, few
files are open at once, nothing it prints is seen, and it ends with the process that forked it.
Where the system has a filter of calls, there are no sockets, no programs and no names to remove.
Elsewhere memory and calls are not held. Files that its user may read it can read; it is a fence
around accidents, and no wall against code that has taken the process over.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mediamill.pipeline.decoding.seccomp import refuse_calls

_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38  # numbers of prctl
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt
_FROM_HEAP, _KEPT = 32 * 1024**2, 128 * 1024**2  # bytes; the first is the most that glibc takes
_FILES = 64
_FIRST_TO_GO = "1000"  # for the system's choice of whom to end when memory runs out
_SLACK = 32  # part of a row's memory by which the limit may be off
_DATA_FIELD = 5  # of statm: pages of data and stack

Prctl = Callable[[int, int, int, int, int], int]


def process_control() -> Prctl | None:
    """The system call that ties a process to its parent; None where there is none."""
    if sys.platform != "linux":
        return None
    call: Prctl = ctypes.CDLL(None, use_errno=True).prctl
    return call


def keep_memory() -> None:
    """Lets this process and its forks use memory again that is free, without asking for it anew.

    What all media of a row have taken is free after it, and glibc would give most of it back: for a
    picture of a megapixel that costs a fifth of its decoding.
    """
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _FROM_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def confine(parent: int, prctl: Prctl | None) -> None:
    """For the first steps of a fork: from here on this process may only decode.

    parent: the number of the process that has forked this one.
    """
    if prctl is not None:
        prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
        # A core would be written in spite of the limit where a program takes it.
        prctl(_DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before the call
        os._exit(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for handle in range(3):
        os.dup2(nowhere, handle)
    os.close(nowhere)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    refuse_calls()


class Ceiling:
    """A limit on the memory of this process, for one row after the other.

    Beyond it memory is refused: Python's MemoryError, and what each library makes of it.
    """

    def __init__(self, size: int) -> None:
        """size: bytes that a row may take beside those that are taken already."""
        self._size = size
        self._facts = os.open("/proc/self/statm", os.O_RDONLY) if sys.platform == "linux" else -1
        self._page = resource.getpagesize()
        self._taken = 0
        self.data_bytes()
        self._base: int | None = None  # bytes above which the limit stands; None = there is none

    def hold(self) -> None:
        """Sets the limit for the next row."""
        # To move it for each would cost more than small rows have to spare.
        if self._base is None or abs(self._taken - self._base) > self._size // _SLACK:
            self._base = self._taken
            if self._facts >= 0:
                _limit(resource.RLIMIT_DATA, self._base + self._size)

    def lift(self) -> None:
        """Ends the limit, as when there is an error to be told."""
        self._base = None
        if self._facts >= 0:
            _limit(resource.RLIMIT_DATA, None)

    def data_bytes(self) -> int:
        """Bytes that this process has of its own, used or not; 0 where that is not told.

        To be called after each row: the next one's limit stands above it.
        """
        if self._facts >= 0:
            facts = os.pread(self._facts, 200, 0).split()
            self._taken = int(facts[_DATA_FIELD]) * self._page
        return self._taken


def _limit(what: int, most: int | None) -> None:
    """None: as far as the process is allowed at all."""
    hard = resource.getrlimit(what)[1]
    if most is None or (hard != resource.RLIM_INFINITY and most > hard):
        most = hard
    resource.setrlimit(what, (most, hard))
