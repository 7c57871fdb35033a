"""Says in one sentence which folder has no room left, and how much is free there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mediamill.pipeline.faults import PermanentError

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or the user's part of it, is full."""
    if not isinstance(error, OSError):
        return False
    text = str(error)  # pyarrow raises errors without a number
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text


def free_room(folder: Path) -> str:
    """Returns how much is free on the disk of a folder, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        status = os.statvfs(folder)
    except OSError:
        return "unknown room free"
    if status.f_files and not status.f_favail:
        return "no room for another file"
    size, unit = float(status.f_bavail * status.f_frsize), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]} free"


def full_disk(folder: Path, purpose: str) -> PermanentError:
    """Returns the error of a run that has no room in a folder. purpose: what it writes there."""
    return PermanentError(
        f"{folder} on machine {os.uname().nodename}: the disk is full ({free_room(folder)}), "
        f"expected room for {purpose}: make room there"
    )


@contextmanager
def needs_room(folder: Path, purpose: str) -> Iterator[None]:
    """Raises the error of `full_disk` instead of one without a folder; all others pass."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        # Not chained: a message of Ray's would name the first error of a chain.
        raise full_disk(folder, purpose) from None
