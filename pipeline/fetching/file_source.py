"""Turns a path that a row names into an open file, if it lies where rows may read.

A row comes from outside: links, dots and devices must not lead it out of the allowed folders. What
is checked is what is opened: the links are followed first, and the way that they lead to is then
walked from the allowed folder on, step by step, where no step may be a link any more.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from mediamill.schemas.errors import ErrorCode, RowError

_URL = re.compile(r"file:", re.IGNORECASE)
_HERE = ("", "localhost")
# What lies there is no file, whatever it says: devices, and this process's own secrets.
NEVER = (Path("/proc"), Path("/sys"), Path("/dev"))
_STEP = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LAST = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@contextmanager
def opened(uri: str, base: str, roots: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """A descriptor of the file that a path or file:// URL names, and its size in bytes.

    base: what a relative path is relative to. roots: folders that the file may lie in.
    Raises RowError, fetch_denied or fetch_not_found; OSError.
    """
    for path in _paths(uri, base):
        real = _real(path)
        root = _root(real, roots)
        try:
            descriptor = _walk(root, real)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                continue
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise _no_file() from error
            raise
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise _no_file()
            yield descriptor, facts.st_size
        finally:
            os.close(descriptor)
        return
    raise RowError(ErrorCode.FETCH_NOT_FOUND, "no such file")


def _paths(uri: str, base: str) -> list[str]:
    """What a URI may mean: itself, and for a URL that has percent signs, what they stand for."""
    if "\0" in uri:
        raise _denied("found a NUL character in the path")
    if not _URL.match(uri):
        return [os.path.join(base, uri)]  # noqa: PTH118 - pathlib would take the dots away
    rest = uri[len("file:") :]
    if not rest.startswith("//"):
        raise _denied("found a file: URL without //, expected file:///path")
    host, _, path = rest[2:].partition("/")
    if host.lower() not in _HERE:
        raise _denied(f"found the host '{host}' in a file:// URL, expected none")
    decoded = unquote(path, errors="surrogateescape")
    if "\0" in decoded:
        raise _denied("found a NUL character in the path")
    return [f"/{path}"] if decoded == path else [f"/{path}", f"/{decoded}"]


def _real(path: str) -> Path:
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise RowError(ErrorCode.FETCH_NOT_FOUND, "no such file") from error


def _root(real: Path, roots: tuple[str, ...]) -> Path:
    """The allowed folder that the file lies in."""
    for root in roots:
        found = Path(os.path.realpath(root))
        if real.is_relative_to(found) and not any(real.is_relative_to(one) for one in NEVER):
            return found
    raise _denied(
        "found a file outside of the folders that rows may read, expected one below fetch.roots"
        + (f" ({', '.join(roots)})" if roots else ", which has none; name its folder there")
    )


def _walk(root: Path, real: Path) -> int:
    """Opens `real`, which has no links in it, without following any. Raises OSError."""
    steps = real.relative_to(root).parts
    if not steps:
        raise _no_file()
    with contextlib.ExitStack() as stack:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        for step in steps[:-1]:
            folder = os.open(step, _STEP, dir_fd=folder)
            stack.callback(os.close, folder)
        # Opening a device can do something by itself, so its kind is looked at before, too.
        facts = os.stat(steps[-1], dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(facts.st_mode):
            raise _no_file()
        return os.open(steps[-1], _LAST, dir_fd=folder)


def _no_file() -> RowError:
    return _denied("found a folder, link, pipe or device, expected a file")


def _denied(what: str) -> RowError:
    return RowError(ErrorCode.FETCH_DENIED, what)
