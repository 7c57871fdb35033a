"""Turns remote media that many rows name into one file of this machine, for all its processes.

A file is kept under the hash of its URL, version and size: whoever asks has just heard the last two
from the source, so that a content that has changed is another file. Of many processes that want the
same one, one fetches it. The files are gone with the last process that uses them, or with the next
sweep of the spools; what was not used for longest goes first when they are more than is allowed.
"""

import contextlib
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mediamill.pipeline.fetching.spool import Spool, join

_LOCK = ".lock"
_POLL_S, _LONGEST_POLL_S = 0.02, 0.5  # while another process fetches


class DiskCache:
    """The files that this machine's processes share; threads too."""

    def __init__(self, spool: Spool, max_bytes: int) -> None:
        """max_bytes: of all files together. Raises OSError."""
        self._spool, self._max = spool, max_bytes
        self._folder = join(self)

    @contextmanager
    def entry(self, url: str, version: str, size: int) -> Iterator["CachedFile"]:
        """The place of one content, which nobody else fills meanwhile. Raises OSError."""
        named = hashlib.blake2b(
            f"{url}\0{version}\0{size}".encode(errors="replace"), digest_size=16
        )
        path = self._folder / named.hexdigest()
        with _alone(path.with_name(path.name + _LOCK)) as lock:
            os.utime(lock.fileno())  # when it was last used
            yield CachedFile(self, path, size)

    def make_room(self, size: int) -> None:
        """Removes the files that were not used for longest until one more of `size` fits."""
        found = []
        for path in self._folder.iterdir():
            if not path.name.endswith(_LOCK):
                with contextlib.suppress(OSError):  # another process has just removed it
                    used = path.with_name(path.name + _LOCK).stat().st_mtime_ns
                    found.append((used, path, path.stat().st_size))
        total = sum(one for _, _, one in found)
        for _, path, one in sorted(found):
            if total + size <= self._max:
                return
            path.unlink(missing_ok=True)  # who reads it holds it by another name
            total -= one

    def link(self, path: Path) -> Path:
        """Another name for a file, in this process's spool."""
        own = self._spool.new()
        own.hardlink_to(path)
        return own


class CachedFile:
    """The place of one content."""

    def __init__(self, kept: DiskCache, path: Path, size: int) -> None:
        self._kept, self._path, self._size = kept, path, size

    def find(self) -> Path | None:
        """The content, by a name in this process's spool; None when it is not there."""
        try:
            found = self._kept.link(self._path)
        except FileNotFoundError:
            return None
        if found.stat().st_size == self._size:
            return found
        Spool.release([found, self._path])  # somebody's mistake
        return None

    def keep(self, spooled: Path) -> None:
        """Keeps a file of this process's spool. A disk that is full keeps it from being kept."""
        with contextlib.suppress(OSError):
            self._kept.make_room(self._size)
            other = self._path.with_name(f"{self._path.name}-{uuid.uuid4().hex}")
            other.hardlink_to(spooled)
            other.replace(self._path)


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """While this thread is the only one, of all processes, that holds the lock."""
    pause = _POLL_S
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_POLL_S)
        yield file
