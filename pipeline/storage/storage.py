"""Turns a URL into a file system and a path, and writes to it in ways that survive a crash.

Two kinds of storage differ in what is atomic: a local file system renames, an object store puts
whole objects. The functions here hide that difference; what the bytes mean is not known.
Credentials and endpoints come from the environment of each process in the usual ways of fsspec's
file systems (for s3:// those of AWS, AWS_ENDPOINT_URL included). What a busy or broken store may
answer is tried again, beyond the retries of each library.
"""

import os
import posixpath
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mediamill.model.urls import local_path as local_path
from mediamill.model.urls import redact as redact
from mediamill.model.urls import redact_text as redact_text
from mediamill.model.urls import scheme as scheme
from mediamill.pipeline.storage.retries import Backoff, classify_error, retry
from mediamill.schemas.errors import JobError

_BACKOFF = Backoff(tries=8)
_FOUND = TypeVar("_FOUND")


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


def absolute(url: str) -> str:
    """A path, made absolute against the current directory; any other URL as it is."""
    if scheme(url) != "file":
        return url.rstrip("/")
    path = Path(local_path(url)).expanduser()
    return os.path.normpath(Path.cwd() / path)  # links stay: the name is the user's choice


def resolve(url: str, **settings: Any) -> Place:
    """Where `url` is. settings: further ones of its file system.

    Raises JobError when nothing here can read that kind of URL.
    """
    full = absolute(url)
    if scheme(full) == "file":
        return Place(LocalFileSystem(), full, full)
    if "::" in full:
        raise JobError(f"{redact(full)}: found a chain of URLs ('::'), expected one plain URL")
    try:
        # Listings are cached per process by default, and other processes write here too.
        fs, path = fsspec.url_to_fs(full, use_listings_cache=False, **settings)
    except (ImportError, ValueError) as error:
        reason = redact_text(str(error))
        raise JobError(f"{redact(full)}: cannot be opened: {reason}") from error
    return Place(fs, path.rstrip("/"), full)


def renew(place: Place) -> Place:
    """The same place with credentials that are looked up anew."""
    if hasattr(place.fs, "connect"):  # s3fs: those who share the file system have them too
        place.fs.connect(refresh=True)
        return place
    # fsspec keeps one instance for all who ask with the same settings, and knows no other way.
    cached = type(place.fs)._cache
    if cached.get(place.fs._fs_token) is place.fs:
        del cached[place.fs._fs_token]
    return replace(place, fs=resolve(place.url).fs)


def steadily(place: Place, action: Callable[[Any], _FOUND]) -> _FOUND:
    """What `action` returns when it is called with the place's file system, through faults of the
    store that pass. It may be called several times. Raises what it raises at last.
    """
    if place.is_local:
        return action(place.fs)
    fs = [place.fs]

    def renewed() -> None:
        fs[0] = renew(replace(place, fs=fs[0])).fs

    return retry(lambda: action(fs[0]), _BACKOFF, renewed)


def read(place: Place) -> bytes:
    """The whole content. Raises FileNotFoundError."""
    return bytes(steadily(place, lambda fs: fs.cat_file(place.path)))


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
        sync_folder(target.parent)
        return True

    def create(fs: Any) -> bool:
        try:
            fs.pipe_file(place.path, data, mode="create")
        except Exception as error:
            if classify_error(error).kind not in ("conflict", "changed"):
                raise
            return False
        return True

    # A try may have made the object although its answer was lost: then the next one meets it.
    return steadily(place, create) or read(place) == data


def put(place: Place, data: bytes) -> None:
    """Writes `place` whole and durable, over what was there."""
    if not place.is_local:
        steadily(place, lambda fs: fs.pipe_file(place.path, data))
        return
    target = Path(place.path)
    _write_temporary(target, data).replace(target)
    sync_folder(target.parent)


def put_file(place: Place, source: Path) -> None:
    """Writes `place` whole and durable, over what was there, from a local file of any size."""
    if not place.is_local:
        steadily(place, lambda fs: fs.put_file(str(source), place.path))
        return
    target = Path(place.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    shutil.copyfile(source, temporary)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(target)
    sync_folder(target.parent)


def move(source: Place, target: Place) -> None:
    """Gives a file its final name, over what was there. May be done again after it was cut off:
    a source that is gone counts as moved when the target exists.

    Raises FileNotFoundError when neither exists.
    """
    try:
        if source.is_local:
            Path(target.path).parent.mkdir(parents=True, exist_ok=True)
            Path(source.path).replace(target.path)
            sync_folder(Path(target.path).parent)
        else:
            steadily(source, lambda fs: fs.cp_file(source.path, target.path))
    except FileNotFoundError:
        if not exists(target):
            raise
    if not source.is_local:
        remove(source)


def exists(place: Place) -> bool:
    """Whether there is a file or folder."""
    try:
        steadily(place, lambda fs: fs.info(place.path))
    except FileNotFoundError:
        return False
    return True


def remove(place: Place) -> None:
    """Removes a file; fine when there is none."""
    try:
        steadily(place, lambda fs: fs.rm_file(place.path))
    except FileNotFoundError:
        return


def remove_folder(place: Place) -> None:
    """Removes a folder and all in it; fine when there is none."""
    try:
        steadily(place, lambda fs: fs.rm(place.path, recursive=True))
    except FileNotFoundError:
        return


def files_below(place: Place) -> list[str]:
    """The paths of all files below a folder, relative to it, sorted; empty without a folder."""
    try:
        found = steadily(place, lambda fs: fs.find(place.path))
    except FileNotFoundError:  # s3fs, when there is no bucket
        return []
    return sorted(posixpath.relpath(path, place.path) for path in found)


def _write_temporary(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def sync_folder(folder: Path) -> None:
    """Makes the names in a local folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
