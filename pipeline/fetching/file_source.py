"""Opens a file that a row names, if it lies in a folder that rows may read.

Rows are untrusted: links, dots and devices must not lead out of the allowed folders. Links are
resolved first; the resolved path is then opened component by component below the allowed folder,
without following links, so that the file that was checked is the file that is opened.
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
_WINDOWS = re.compile(r"[a-zA-Z]:[\\/]|\\\\|[^/]*\\[^/]*\\")
_LOCAL_HOSTS = ("", "localhost")
# Devices, and this process's own secrets.
FORBIDDEN_FOLDERS = (Path("/proc"), Path("/sys"), Path("/dev"))
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@contextmanager
def open_file(uri: str, base: str, roots: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Opens the file that a path or file:// URL names; yields its descriptor and size in bytes.

    base: the folder that relative paths are relative to.
    roots: folders that the file may lie in.
    Raises RowError, fetch_denied or fetch_not_found; OSError.
    """
    for path in candidate_paths(uri, base):
        real = _resolve_links(path)
        root = _find_root(real, roots)
        try:
            descriptor = _open_below(root, real)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                continue
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise _not_a_file() from error
            raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _not_a_file()
            yield descriptor, status.st_size
        finally:
            os.close(descriptor)
        return
    raise _missing(uri)


def candidate_paths(uri: str, base: str) -> list[str]:
    """Returns the paths that a URI may mean: a URL with percent signs as they are, and decoded.

    Raises RowError, fetch_denied.
    """
    if "\0" in uri:
        raise _denied("found a NUL character in the path")
    if not _URL.match(uri):
        return [os.path.join(base, uri)]  # noqa: PTH118 - pathlib would remove dots
    path = uri[len("file:") :]
    if path.startswith("//"):
        host, _, path = path[2:].partition("/")
        if host.lower() not in _LOCAL_HOSTS:
            raise _denied(f"found the host '{host:.80}' in a file:// URL, expected none")
        path = f"/{path}"
    if not path.startswith("/"):
        raise _denied("found a file: URL without a slash, expected file:///path")
    decoded = unquote(path, errors="surrogateescape")
    if "\0" in decoded:
        raise _denied("found a NUL character in the path")
    return [path] if decoded == path else [path, decoded]


def _missing(uri: str) -> RowError:
    """The error of a file that does not exist, with what may be wrong with its name."""
    hint = ""
    if _WINDOWS.match(uri):
        hint = ": the path is one of Windows, expected one of this machine"
    elif uri.startswith("~"):
        hint = ": ~ is not expanded, expected the whole path"
    elif uri != uri.strip():
        hint = ": its name begins or ends with white space"
    return RowError(ErrorCode.FETCH_NOT_FOUND, f"no such file{hint}")


def _resolve_links(path: str) -> Path:
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise RowError(ErrorCode.FETCH_NOT_FOUND, "no such file") from error


def _find_root(real: Path, roots: tuple[str, ...]) -> Path:
    """Returns the allowed folder that the file lies in. Raises RowError, fetch_denied."""
    forbidden = any(real.is_relative_to(folder) for folder in FORBIDDEN_FOLDERS)
    for root in () if forbidden else roots:
        folder = Path(os.path.realpath(root))
        if real.is_relative_to(folder):
            return folder
    raise _denied(
        "found a file outside of the folders that rows may read, expected one below fetch.roots"
        + (
            f" ({', '.join(dict.fromkeys(roots))})"
            if roots
            else ", which has none; name its folder there"
        )
    )


def _open_below(root: Path, real: Path) -> int:
    """Opens `real`, a path without links, without following links. Raises OSError."""
    parts = real.relative_to(root).parts
    if not parts:
        raise _not_a_file()
    with contextlib.ExitStack() as stack:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        for part in parts[:-1]:
            folder = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            stack.callback(os.close, folder)
        # Opening a device can have effects, so the file type is checked before opening, too.
        status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise _not_a_file()
        return os.open(parts[-1], _FILE_FLAGS, dir_fd=folder)


def _not_a_file() -> RowError:
    return _denied("found a folder, link, pipe or device, expected a file")


def _denied(message: str) -> RowError:
    return RowError(ErrorCode.FETCH_DENIED, message)
