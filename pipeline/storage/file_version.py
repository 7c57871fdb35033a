"""Identifies the version of a file by its metadata, without reading its content.

An object store's own names of a content (ETag, generation) are trusted. The version of a local
file is its size, modification time and inode change time. No program can set the inode change
time, so restoring the modification time after a rewrite hides nothing. A second write of the same
size within one tick of the file system's clock (a few milliseconds) is not noticed.
"""

import os
from collections.abc import Mapping
from typing import Any

from mediamill.pipeline.storage.schemes import TIME_FIELDS, VERSION_FIELDS
from mediamill.pipeline.storage.storage import Place


def file_version(place: Place, info: Mapping[str, Any] | None = None) -> str:
    """Returns the file's version; "" where the storage reports no name and no time.

    info: the file's entry in a listing, which saves a request.
    Raises OSError when the file does not exist.
    """
    if place.is_local:
        # A listing would describe a symbolic link itself, not the file that it points to.
        status = os.stat(place.path)  # noqa: PTH116
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    if info is None:
        info = place.fs.info(place.path)
    size = info.get("size")
    names = [str(info[field]).strip('"') for field in VERSION_FIELDS if info.get(field)]
    times = [f"@{info[field]}".replace(" ", "T") for field in TIME_FIELDS if info.get(field)]
    return f"{size} {(names + times)[0]}" if size is not None and names + times else ""


def same_content(version: str, later: str) -> bool:
    """Whether two versions of a file may have the same content.

    Two differences do not count: the inode change time of a local file, which another hard link
    changes too, and times of an object store, which its listings and its files may format
    differently.
    """
    before, after = version.split(" ")[:2], later.split(" ")[:2]
    if before == after or len(before) < 2 or len(after) < 2:
        return True
    return before[1][0] == after[1][0] == "@"
