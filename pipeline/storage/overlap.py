"""Tells whether a folder and what is read lie in one another, whatever their spelling.

Links, `..`, bind mounts and capital letters of a scheme are other names of the same place.
"""

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from mediamill.pipeline.storage import storage

_WILDCARD = re.compile(r"[*?\[]")


def overlaps(folder: str, source: str) -> bool:
    """Whether `folder` is, lies in or lies around `source`, or files in it would match `source`.

    source: a path or URL of a file or folder, or a glob. Raises JobError for a URL that cannot be
    opened.
    """
    folder, source = storage.absolute(folder), storage.absolute(source)
    if storage.scheme(folder) == "file" and storage.scheme(source) == "file":
        return _local_overlap(folder, source)
    places = storage.resolve(folder), storage.resolve(source)
    if type(places[0].fs) is not type(places[1].fs):
        return False
    names, pattern = (place.path.strip("/").split("/") for place in places)
    return _matches(names, pattern)


def _local_overlap(folder: str, source: str) -> bool:
    wildcard = _WILDCARD.search(source)
    root, pattern = source, ""
    if wildcard and not os.path.lexists(source):  # a name may hold such characters
        root, _, start = source[: wildcard.start()].rpartition("/")
        pattern = start + source[wildcard.start() :]
    root = root or "/"
    for above, below in _ancestors(folder):
        if _same(above, root):
            return _matches(below, pattern.split("/") if pattern else [])
    return any(_same(above, folder) for above, _ in _ancestors(root))


def _ancestors(path: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields a path without links and all folders above it, with the names below each."""
    parts = Path(os.path.realpath(path)).parts
    for number in range(len(parts), 0, -1):
        yield str(Path(*parts[:number])), parts[number:]


def _same(path: str, other: str) -> bool:
    try:
        return Path(path).samefile(other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the names match the pattern as far as both go; `**` matches all that follow."""
    for name, expected in zip(names, pattern, strict=False):
        if "**" in expected:
            return True
        if not (fnmatchcase(name, expected) or name == expected):
            return False
    return True
