"""Caches remote media that many rows name on the local disk, for all processes of a machine.

The key of an entry is the hash of its URL, version and size, so a changed content has another key.
Of several processes that need the same entry, one fetches it and the others wait. A full cache
evicts the least recently used files. All files are removed when the last process that uses the
cache ends, or by the next sweep of the spools.
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

from mediamill.pipeline.fetching.spool import Spool, join_shared_folder

_LOCK = ".lock"
_POLL_S, _MAX_POLL_S = 0.02, 0.5  # while another process holds the lock


class DiskCache:
    """The cache that the processes and threads of this machine share."""

    def __init__(self, spool: Spool, max_bytes: int) -> None:
        """max_bytes: of all files together. Raises OSError."""
        self._spool, self._max_bytes = spool, max_bytes
        self._folder = join_shared_folder(self)

    @contextmanager
    def entry(self, url: str, version: str, size: int) -> Iterator["CacheEntry"]:
        """Locks the entry of one content for this thread. Raises OSError."""
        key = hashlib.blake2b(f"{url}\0{version}\0{size}".encode(errors="replace"), digest_size=16)
        path = self._folder / key.hexdigest()
        with _locked(path.with_name(path.name + _LOCK)) as lock:
            os.utime(lock.fileno())  # the lock's mtime is the time of the entry's last use
            yield CacheEntry(self, path, size)

    def evict(self, size: int) -> None:
        """Removes least recently used files until a new one of `size` bytes fits."""
        files = []
        for path in self._folder.iterdir():
            if not path.name.endswith(_LOCK):
                with contextlib.suppress(OSError):  # another process has just removed it
                    used = path.with_name(path.name + _LOCK).stat().st_mtime_ns
                    files.append((used, path, path.stat().st_size))
        total = sum(file_size for _, _, file_size in files)
        for _, path, file_size in sorted(files):
            if total + size <= self._max_bytes:
                return
            path.unlink(missing_ok=True)  # readers have their own hard links
            total -= file_size

    def link(self, path: Path) -> Path:
        """Returns a new hard link to a file, in this process's spool."""
        link = self._spool.new()
        link.hardlink_to(path)
        return link


class CacheEntry:
    """The locked entry of one content of `size` bytes."""

    def __init__(self, cache: DiskCache, path: Path, size: int) -> None:
        self._cache, self._path, self.size = cache, path, size

    def get(self) -> Path | None:
        """Returns a link to the content in this process's spool; None if it is not cached."""
        try:
            link = self._cache.link(self._path)
        except FileNotFoundError:
            return None
        if link.stat().st_size == self.size:
            return link
        Spool.release([link, self._path])  # a corrupt entry
        return None

    def put(self, spooled: Path) -> None:
        """Caches a file of this process's spool; does nothing when the disk is full."""
        with contextlib.suppress(OSError):
            self._cache.evict(self.size)
            temporary = self._path.with_name(f"{self._path.name}-{uuid.uuid4().hex}")
            temporary.hardlink_to(spooled)
            temporary.replace(self._path)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Holds a file lock, exclusively among the threads of all processes."""
    pause = _POLL_S
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(pause)
                pause = min(2 * pause, _MAX_POLL_S)
        yield file
