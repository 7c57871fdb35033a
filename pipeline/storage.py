"""Turns a URL into a file system and a path, and writes to it in ways that survive a crash.

Two kinds of storage differ in what is atomic: a local file system renames, an object store puts
whole objects. The functions here hide that difference; what the bytes mean is not known.
Credentials and endpoints come from the environment of each process in the usual ways of fsspec's
file systems (for s3:// those of AWS, AWS_ENDPOINT_URL included).
"""

import os
import posixpath
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import JobError

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.:-]*)://")
_URL = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")


@dataclass(frozen=True)
class Place:
    """A file or folder: `fs.open(path)` opens it. `url` is absolute, without a slash at the end."""

    fs: Any  # fsspec.AbstractFileSystem, which has no types
    path: str
    url: str

    def __truediv__(self, name: str) -> "Place":
        return Place(self.fs, posixpath.join(self.path, name), posixpath.join(self.url, name))

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)


def scheme(url: str) -> str:
    """The URL's scheme in lower case; "file" for a path."""
    found = _SCHEME.match(url)
    return found.group(1).lower() if found else "file"


def local_path(url: str) -> str:
    """The path of a `file://` URL, or of a path."""
    return re.sub(r"^file://(localhost)?", "", url, flags=re.IGNORECASE)


def absolute(url: str) -> str:
    """A path, made absolute against the current directory; any other URL as it is."""
    if scheme(url) != "file":
        return url.rstrip("/")
    path = Path(local_path(url)).expanduser()
    return os.path.normpath(Path.cwd() / path)  # links stay: the name is the user's choice


def shown(url: str) -> str:
    """The URL without what may be secret: user, password, query and fragment."""
    if scheme(url) == "file":
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def without_secrets(text: str) -> str:
    """A library's message, with each URL in it as `shown` has it."""
    return _URL.sub(lambda found: shown(found.group()), text)


def resolve(url: str) -> Place:
    """Where `url` is. Raises JobError when nothing here can read that kind of URL."""
    full = absolute(url)
    if scheme(full) == "file":
        return Place(LocalFileSystem(), full, full)
    if "::" in full:
        raise JobError(f"{shown(full)}: found a chain of URLs ('::'), expected one plain URL")
    try:
        # Listings are cached per process by default, and other processes write here too.
        fs, path = fsspec.url_to_fs(full, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise JobError(f"{shown(full)}: cannot be opened: {error}") from error
    return Place(fs, path.rstrip("/"), full)


def read(place: Place) -> bytes:
    """The whole content. Raises FileNotFoundError."""
    return bytes(place.fs.cat_file(place.path))


def put_new(place: Place, data: bytes) -> bool:
    """Writes `place` whole and durable, or not at all; False when something is there already.

    Of several writers of one place, at any time and from any machine, exactly one gets True.
    """
    if place.is_local:
        target = Path(place.path)
        temporary = _write_temporary(target, data)
        try:
            target.hardlink_to(temporary)  # the local call that fails when the name is taken
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync(target.parent)
        return True
    try:
        place.fs.pipe_file(place.path, data, mode="create")
    except OSError as error:
        if not (isinstance(error, FileExistsError) or _is_conflict(error)):
            raise
        # A retried request meets the object that its first try has made: then it is ours.
        return read(place) == data
    return True


def put(place: Place, data: bytes) -> None:
    """Writes `place` whole and durable, over what was there."""
    if not place.is_local:
        place.fs.pipe_file(place.path, data)
        return
    target = Path(place.path)
    _write_temporary(target, data).replace(target)
    _sync(target.parent)


def move(source: Place, target: Place) -> None:
    """Gives a file its final name, over what was there. May be done again after it was cut off:
    a source that is gone counts as moved when the target exists.

    Raises FileNotFoundError when neither exists.
    """
    try:
        if source.is_local:
            Path(target.path).parent.mkdir(parents=True, exist_ok=True)
            Path(source.path).replace(target.path)
            _sync(Path(target.path).parent)
        else:
            source.fs.cp_file(source.path, target.path)
    except FileNotFoundError:
        if not target.fs.exists(target.path):
            raise
    if not source.is_local:
        remove(source)


def remove(place: Place) -> None:
    """Removes a file; fine when there is none."""
    try:
        place.fs.rm_file(place.path)
    except FileNotFoundError:
        return


def remove_folder(place: Place) -> None:
    """Removes a folder and all in it; fine when there is none."""
    try:
        place.fs.rm(place.path, recursive=True)
    except FileNotFoundError:
        return


def files_below(place: Place) -> list[str]:
    """The paths of all files below a folder, relative to it, sorted; empty without a folder."""
    try:
        found = place.fs.find(place.path)
    except FileNotFoundError:  # s3fs, when there is no bucket
        return []
    return sorted(posixpath.relpath(path, place.path) for path in found)


def _is_conflict(error: OSError) -> bool:
    text = f"{error} {error.__cause__}".lower()
    return any(word in text for word in ("precondition", "pre-condition", "conditionalrequest"))


def _write_temporary(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
