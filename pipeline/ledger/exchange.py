"""Exchanges two folders in one step of the file system, where Linux and the file system can."""

import ctypes
import os
import shutil
import sys
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def exchange(one: Path, other: Path) -> None:
    """Gives each of two existing folders the other's name, atomically. Raises OSError."""
    sys.audit("os.rename", str(one), str(other), -1, -1)
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError("renameat2 does not exist here")
    paths = os.fsencode(one), os.fsencode(other)
    if call(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


def can_exchange(one: Path, other: Path) -> bool:
    """Returns whether folders below `one` can be exchanged with folders below `other`.

    Both are made if they do not exist.
    """
    probes = [folder / ".exchange-probe" for folder in (one, other)]
    try:
        for probe in probes:
            probe.mkdir(parents=True, exist_ok=True)
        exchange(*probes)
    except OSError:
        return False
    finally:
        for probe in probes:
            shutil.rmtree(probe, ignore_errors=True)
    return True
