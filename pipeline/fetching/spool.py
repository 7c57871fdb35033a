"""Stores media that are too large for memory in temporary files, and removes them.

Each process has its own folder below the system's temporary one, and removes it when it ends. The
next sweep removes the folder of a killed process: a lock on a file beside the folder shows whether
the process is alive.
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
_SHARED = "kept"  # the folder that all processes share (see disk_cache.py)


def root_folder() -> Path:
    """The folder of all spools of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"mediamill-{os.getuid()}"


class Spool:
    """The temporary files of this process. Threads may share it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._folder: Path | None = None
        sweep()

    def new(self) -> Path:
        """Returns the path of a new file, which does not exist yet. Raises OSError."""
        with self._mutex:
            if self._folder is None:
                self._folder, lock = _create_folder(root_folder())
                weakref.finalize(self, _remove_own, self._folder.parent, lock, os.getpid())
            return self._folder / uuid.uuid4().hex

    @staticmethod
    def share(path: Path) -> Path:
        """Returns a new hard link to a spooled file; other paths unchanged.

        The file exists until all its links are released.
        """
        if not _is_spooled(path):
            return path
        link = path.with_name(uuid.uuid4().hex)
        link.hardlink_to(path)
        return link

    @staticmethod
    def release(paths: Iterable[str | Path | None]) -> None:
        """Removes those of the paths that are spooled files and exist."""
        for path in paths:
            if path is not None and _is_spooled(Path(path)):
                with contextlib.suppress(OSError):
                    Path(path).unlink()


def sweep() -> None:
    """Removes the files that killed processes have left."""
    root = root_folder()
    if not _is_private(root):
        return
    for process_folder in root.iterdir():
        with contextlib.suppress(OSError):  # its process has just started or ended
            if not (process_folder / _LOCK).exists():
                process_folder.rmdir()  # fails if the lock was created meanwhile
                continue
            lock = _lock(process_folder / _LOCK)
            if lock is not None:
                _remove(process_folder, lock)


def join_shared_folder(user: object) -> Path:
    """Returns the folder of the files that all processes of this user share.

    The folder exists as long as one of the `user` objects; the first sweep after that removes it.
    Raises OSError.
    """
    folder = _create_root(root_folder()) / _SHARED
    while True:
        with contextlib.suppress(FileNotFoundError):  # a sweep has just removed it
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = (folder / _LOCK).open("ab")
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_same_file(lock, folder / _LOCK):
                (folder / _FOLDER).mkdir(mode=0o700, exist_ok=True)
                weakref.finalize(user, lock.close)
                return folder / _FOLDER
            lock.close()


@contextmanager
def hold_shared_folder() -> Iterator[None]:
    """Keeps the shared files inside the block, also while no other process uses them."""
    user = _SharedFolderUser()
    with contextlib.suppress(OSError):  # then there is no shared folder
        join_shared_folder(user)
    try:
        yield
    finally:
        del user
        sweep()


class _SharedFolderUser:
    """Holds the lock of the shared folder as long as it lives."""


def _create_root(root: Path) -> Path:
    with contextlib.suppress(FileExistsError):  # also raised if the name is not a folder
        root.mkdir(mode=0o700)
    if not _is_private(root):
        raise PermissionError(f"{root}: belongs to another user, expected a folder of this one")
    return root


def _create_folder(root: Path) -> tuple[Path, BinaryIO]:
    """Creates a folder for this process. Returns it with the lock that a sweep looks at."""
    _create_root(root)
    while True:
        process_folder = root / uuid.uuid4().hex
        process_folder.mkdir(mode=0o700)
        with contextlib.suppress(OSError):
            lock = _lock(process_folder / _LOCK, create=True)
            if lock is not None:
                folder = process_folder / _FOLDER
                folder.mkdir(mode=0o700)
                return folder, lock


def _lock(path: Path, create: bool = False) -> BinaryIO | None:
    """Opens and locks a file; None if another process holds the lock.

    Raises OSError if the file does not exist, or with `create`, if it does.
    """
    file = path.open("xb" if create else "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same_file(file, path):
            return file
    except OSError:
        file.close()
        return None
    file.close()
    return None


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    """Whether the path still names the open file: a sweep may remove it before it is locked."""
    return os.path.samestat(os.fstat(file.fileno()), path.stat())


def _remove_own(process_folder: Path, lock: BinaryIO, process: int) -> None:
    if os.getpid() == process:  # not in a fork, which ends earlier
        _remove(process_folder, lock)


def _remove(process_folder: Path, lock: BinaryIO) -> None:
    """Removes a process's folder. The lock goes last, so that no sweep sees half of the folder."""
    shutil.rmtree(process_folder / _FOLDER, ignore_errors=True)
    with contextlib.suppress(OSError):
        (process_folder / _LOCK).unlink()
        process_folder.rmdir()
    lock.close()


def _is_private(root: Path) -> bool:
    """Whether only this user can write to the folder: others could choose what is decoded."""
    try:
        status = root.lstat()
    except FileNotFoundError:
        return False
    private = not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and private


def _is_spooled(path: Path) -> bool:
    folder = path.parent
    return folder.name == _FOLDER and folder.parent.parent == root_folder()
