"""Writes local files so that they appear as a whole or not at all, and survive a crash."""

import contextlib
import os
import re
import shutil
import time
import uuid
from pathlib import Path

from mediamill.pipeline.storage.disk_room import needs_room

_PURPOSE = "the output"
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_STALE_S = 60.0  # of a temporary file that no process writes any more


def write(target: Path, data: bytes, replace: bool = True) -> bool:
    """Writes a file durably. Returns False if it exists, with `replace` False.

    Raises PermanentError when the disk is full.
    """
    with needs_room(target.parent, _PURPOSE):
        temporary = _temporary(target)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(target)
            else:
                target.hardlink_to(temporary)  # unlike a rename, fails when the name is taken
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        fsync(target.parent)
        return True


def copy(source: Path, target: Path) -> None:
    """Copies a file of any size durably, and replaces what is there.

    Raises PermanentError when the disk is full.
    """
    with needs_room(target.parent, _PURPOSE):
        temporary = _temporary(target)
        try:
            shutil.copyfile(source, temporary)
            fsync(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        fsync(target.parent)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all bytes to an open file: a nearly full disk takes a part without an error."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def remove_stale(folder: Path, below: bool = True) -> None:
    """Removes the temporary files that killed processes have left in a folder.

    below: also in the folders below it.
    """
    now = time.time()
    for parent, folders, names in os.walk(folder):
        if not below:
            folders.clear()
        for name in filter(_TEMPORARY.fullmatch, names):
            path = Path(parent, name)
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > _STALE_S:
                    path.unlink()


def fsync(path: Path) -> None:
    """Makes the content of a file durable, or the file names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent / f".{uuid.uuid4().hex}.tmp"
