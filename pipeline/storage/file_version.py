"""Turns what a storage says of a file, without its content being read, into a stamp: a text that
another content of the file would not have.

A storage that names contents (ETag, generation) is believed. On local disks a stamp is size and
times; the time of change of the inode is one that no program can set, so that a content of the
same size, with its old modification time put back, is seen too. What is not seen is a second write
of the same size within one tick of the file system's clock, a few milliseconds.
"""

import os
from collections.abc import Mapping
from typing import Any

from mediamill.pipeline.storage.storage import Place

_NAMES = ("ETag", "etag", "generation", "md5Hash", "content_md5", "blob_id")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified")


def file_version(place: Place, info: Mapping[str, Any] | None = None) -> str:
    """The file's stamp; "" where the storage says too little.

    info: what a listing has said of it, which spares a request. Raises OSError when the file is
    not there.
    """
    if place.is_local:
        found = os.stat(place.path)  # noqa: PTH116 - of what a link points to, unlike a listing
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    if info is None:
        info = place.fs.info(place.path)
    size = info.get("size")
    names = [str(info[name]).strip('"') for name in _NAMES if info.get(name)]
    times = [f"@{info[name]}".replace(" ", "T") for name in _TIMES if info.get(name)]
    known = [*names, *times]
    return f"{size} {known[0]}" if size is not None and known else ""


def same_content(stamp: str, later: str) -> bool:
    """Whether nothing speaks for another content.

    Two things do not: the time of change of a local inode, which another link to the file changes
    too, and times of an object store, which its listings and its files may write differently.
    """
    was, now = stamp.split(" ")[:2], later.split(" ")[:2]
    return was == now or len(was) < 2 or len(now) < 2 or (was[1][0] == now[1][0] == "@")
