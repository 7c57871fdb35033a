"""Turns media that are too large for memory into temporary files, and removes them.

Each process has a folder of its own below the system's temporary one, made when it is first
needed. It goes when the process ends; of a process that was killed, with the next sweep: the lock
on a file beside the folder says whether its process still lives. What the files hold is not known.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FOLDER = "spool"
_LOCK = "lock"
_KEPT = "kept"  # the one place that processes share


def home() -> Path:
    """The folder of all spools of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"mediamill-{os.getuid()}"


class Spool:
    """Temporary files of this process. Threads may share it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._folder: Path | None = None
        sweep()

    def new(self) -> Path:
        """The path of a new file, which does not exist yet. Raises OSError."""
        with self._mutex:
            if self._folder is None:
                self._folder, lock = _claim(home())
                weakref.finalize(self, _end, self._folder.parent, lock, os.getpid())
            return self._folder / uuid.uuid4().hex

    @staticmethod
    def share(path: Path) -> Path:
        """Another name for a file, which is there until all its names are released; the same name
        for what is not spooled.
        """
        if not _is_spooled(path):
            return path
        other = path.with_name(uuid.uuid4().hex)
        other.hardlink_to(path)
        return other

    @staticmethod
    def release(paths: Iterable[str | Path | None]) -> None:
        """Removes files that were spooled; fine when they are gone. Others are left alone."""
        for path in paths:
            if path is not None and _is_spooled(Path(path)):
                with contextlib.suppress(OSError):
                    Path(path).unlink()


def sweep() -> None:
    """Removes what processes have left that were killed."""
    root = home()
    if not _is_ours(root):
        return
    for place in root.iterdir():
        with contextlib.suppress(OSError):  # its process has just begun, or ended
            if not (place / _LOCK).exists():
                place.rmdir()  # fails when the lock has come meanwhile
                continue
            lock = _lock(place / _LOCK)
            if lock is not None:
                _remove(place, lock)


def join(owner: object) -> Path:
    """The folder of files that all processes of this user share, as long as `owner` is there; it
    goes with the first sweep after its last user. Raises OSError.
    """
    root = _own(home())
    place = root / _KEPT
    while True:
        with contextlib.suppress(FileNotFoundError):  # a sweep has just removed it
            place.mkdir(mode=0o700, exist_ok=True)
            lock = (place / _LOCK).open("ab")
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_at(lock, place / _LOCK):
                (place / _FOLDER).mkdir(mode=0o700, exist_ok=True)
                weakref.finalize(owner, lock.close)
                return place / _FOLDER
            lock.close()


@contextmanager
def kept() -> Iterator[None]:
    """While it lasts, what processes of this machine keep for each other stays, also when the last
    of them ends.
    """
    user = _User()
    with contextlib.suppress(OSError):  # then nothing is kept
        join(user)
    try:
        yield
    finally:
        del user
        sweep()


class _User:
    """Somebody who uses the shared files."""


def _own(root: Path) -> Path:
    with contextlib.suppress(FileExistsError):  # also where something else has the name
        root.mkdir(mode=0o700)
    if not _is_ours(root):
        raise PermissionError(f"{root}: belongs to another user, expected a folder of this one")
    return root


def _claim(root: Path) -> tuple[Path, BinaryIO]:
    """A folder of this process, and the file whose lock says so."""
    _own(root)
    while True:
        place = root / uuid.uuid4().hex
        place.mkdir(mode=0o700)
        with contextlib.suppress(OSError):
            lock = _lock(place / _LOCK, create=True)
            if lock is not None:
                folder = place / _FOLDER
                folder.mkdir(mode=0o700)
                return folder, lock


def _lock(path: Path, create: bool = False) -> BinaryIO | None:
    """The file, locked; None when another process has it. Raises OSError when there is none."""
    file = path.open("xb" if create else "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, path):
            return file
    except OSError:
        file.close()
        return None
    file.close()
    return None


def _is_at(file: BinaryIO, path: Path) -> bool:
    """A sweep may have removed the file between our opening and locking it."""
    return os.path.samestat(os.fstat(file.fileno()), path.stat())


def _end(place: Path, lock: BinaryIO, process: int) -> None:
    if os.getpid() == process:  # and not a fork of it, which ends earlier
        _remove(place, lock)


def _remove(place: Path, lock: BinaryIO) -> None:
    """A process's place; the lock goes last, or a sweep could meet half of it."""
    shutil.rmtree(place / _FOLDER, ignore_errors=True)
    with contextlib.suppress(OSError):
        (place / _LOCK).unlink()
        place.rmdir()
    lock.close()


def _is_ours(root: Path) -> bool:
    """A folder that others could write to would let them choose what is decoded."""
    try:
        facts = root.lstat()
    except FileNotFoundError:
        return False
    private = not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and private


def _is_spooled(path: Path) -> bool:
    folder = path.parent
    return folder.name == _FOLDER and folder.parent.parent == home()
