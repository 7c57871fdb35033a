"""Resolves URLs to file systems and paths, and reads and writes files so that they survive a crash.

A local file system renames files, an object store puts whole objects: this module hides the
difference, and retries transient errors of object stores. Credentials and endpoints come from the
environment, as fsspec's file systems read it (s3:// reads AWS_ENDPOINT_URL, for example).
"""

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from mediamill.model.urls import local_path as local_path
from mediamill.model.urls import redact as redact
from mediamill.model.urls import redact_text as redact_text
from mediamill.model.urls import safe_text as safe_text
from mediamill.model.urls import scheme as scheme
from mediamill.pipeline.storage import local_files
from mediamill.pipeline.storage.disk_room import needs_room
from mediamill.pipeline.storage.local_files import fsync as fsync
from mediamill.pipeline.storage.retries import Backoff, classify_error, retry
from mediamill.pipeline.storage.schemes import READERS
from mediamill.schemas.errors import JobError

_BACKOFF = Backoff(tries=8)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Place:
    """A file or folder. `fs.open(path)` opens it; `url` is absolute, without a trailing slash."""

    fs: Any  # fsspec.AbstractFileSystem, which has no types
    path: str
    url: str

    def __truediv__(self, name: str) -> "Place":
        # Not posixpath.join: the key of an object may have slashes at its start.
        return Place(self.fs, _below(self.path, name), _below(self.url, name))

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)


def absolute(url: str) -> str:
    """Returns a path made absolute against the current directory; other URLs unchanged.

    Raises JobError for what no file system can open.
    """
    if "\0" in url:
        raise JobError(f"{redact(url)}: found a NUL character, expected a path or URL")
    if (name := scheme(url)) != "file":
        rest = url[len(name) :].rstrip("/")  # `://` and what follows
        if rest == ":":
            raise JobError(f"{name}://: found nothing after the scheme, expected a whole URL")
        return f"{name}{rest}"  # schemes are compared in lower case
    path = Path(local_path(url)).expanduser()
    return os.path.normpath(Path.cwd() / path)  # symbolic links stay: the user chose the name


def resolve(url: str, **settings: Any) -> Place:
    """Returns the place of `url`. settings: further arguments of its fsspec file system.

    Raises JobError when no installed file system can read that kind of URL.
    """
    full = absolute(url)
    if scheme(full) == "file":
        return Place(LocalFileSystem(), full, full)
    name = scheme(full)
    if "::" in name:
        raise JobError(f"{redact(full)}: found a chain of URLs ('::'), expected one plain URL")
    try:
        # Not fsspec.url_to_fs, which takes any '::' in a key for a chain of URLs.
        on_s3 = READERS.get(name) == "s3"
        kind = fsspec.get_filesystem_class("s3" if on_s3 else name)
        options = kind._get_kwargs_from_urls(full)
        # fsspec caches listings per process by default; other processes write here too.
        fs = kind(**{**options, "use_listings_cache": False, **settings})
        path = full.partition("://")[2] if on_s3 else kind._strip_protocol(full)
    except (ImportError, ValueError) as error:
        reason = redact_text(str(error))
        raise JobError(f"{redact(full)}: cannot be opened: {reason}") from error
    return Place(fs, path.rstrip("/"), full)


def renew(place: Place) -> Place:
    """Returns the same place with credentials that are looked up again."""
    if hasattr(place.fs, "connect"):  # s3fs: all users of the file system object get them
        place.fs.connect(refresh=True)
        return place
    # fsspec shares one instance for equal settings; there is no public way to replace it.
    instances = type(place.fs)._cache
    if instances.get(place.fs._fs_token) is place.fs:
        del instances[place.fs._fs_token]
    return replace(place, fs=resolve(place.url).fs)


def with_retries(place: Place, action: Callable[[Any], _Result]) -> _Result:
    """Returns action(file system of the place); calls it again after transient errors.

    Raises what the last call raises.
    """
    if place.is_local:
        return action(place.fs)
    fs = place.fs

    def renew_credentials() -> None:
        nonlocal fs
        fs = renew(replace(place, fs=fs)).fs

    return retry(lambda: action(fs), _BACKOFF, renew_credentials)


def read(place: Place) -> bytes:
    """Returns the whole content. Raises FileNotFoundError."""
    return bytes(with_retries(place, lambda fs: fs.cat_file(place.path)))


def put_if_absent(place: Place, data: bytes) -> bool:
    """Writes `place` atomically and durably if nothing is there; False if something is.

    Of several writers of one place, at any time and from any machine, exactly one gets True.
    As all writers of this module, raises PermanentError when the disk of a local folder is full.
    """
    if place.is_local:
        return local_files.write(Path(place.path), data, replace=False)

    def create(fs: Any) -> bool:
        try:
            fs.pipe_file(place.path, data, mode="create")
        except Exception as error:
            if classify_error(error).kind not in ("conflict", "changed"):
                raise
            return False
        return True

    # A try may have created the object although its response was lost; the retry then finds it.
    return with_retries(place, create) or read(place) == data


def put(place: Place, data: bytes) -> None:
    """Writes `place` atomically and durably; replaces what is there."""
    if place.is_local:
        local_files.write(Path(place.path), data)
    else:
        with_retries(place, lambda fs: fs.pipe_file(place.path, data))


def put_file(place: Place, source: Path) -> None:
    """Copies a local file of any size to `place` atomically and durably; replaces what is there."""
    if place.is_local:
        local_files.copy(source, Path(place.path))
    else:
        with_retries(place, lambda fs: fs.put_file(str(source), place.path))


def move(source: Place, target: Place) -> None:
    """Renames a file; replaces what is there. An interrupted move can be repeated.

    Raises FileNotFoundError when neither source nor target exists.
    """
    try:
        if source.is_local:
            folder = Path(target.path).parent
            with needs_room(folder, "the output"):
                folder.mkdir(parents=True, exist_ok=True)
                Path(source.path).replace(target.path)
                fsync(folder)
        else:
            with_retries(source, lambda fs: fs.cp_file(source.path, target.path))
    except FileNotFoundError:
        if not exists(target):
            raise
    if not source.is_local:
        remove(source)


def exists(place: Place) -> bool:
    """Whether a file or folder exists."""
    try:
        with_retries(place, lambda fs: fs.info(place.path))
    except FileNotFoundError:
        return False
    return True


def size(place: Place) -> int | None:
    """Returns the bytes of a file, None if it does not exist."""
    try:
        return int(with_retries(place, lambda fs: fs.info(place.path))["size"])
    except FileNotFoundError:
        return None


def remove(place: Place) -> None:
    """Removes a file, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        with_retries(place, lambda fs: fs.rm_file(place.path))


def remove_stale(place: Place, below: bool = True) -> None:
    """Removes the temporary files that killed writers have left in a folder a minute ago or more.

    below: also in the folders below it.
    """
    if place.is_local:  # an object appears only when it is whole
        local_files.remove_stale(Path(place.path), below)


def list_files(place: Place) -> list[str]:
    """Returns the relative paths of all files below a folder, sorted; none if it does not exist."""
    try:
        paths = with_retries(place, lambda fs: find(replace(place, fs=fs)))
    except FileNotFoundError:  # s3fs, when the bucket does not exist
        return []
    return sorted(relative(path, place) for path in paths if path != place.path)


def find(place: Place) -> dict[str, Any]:
    """Returns all files below a folder: what a listing tells of each, by path.

    Objects of no bytes that stand for folders are left out.
    """
    if READERS.get(scheme(place.url)) != "s3":
        return dict(place.fs.find(place.path, detail=True))
    # s3fs's own listing removes slashes from the folder's name.
    bucket, _, key = place.path.partition("/")
    pages: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
    found = {}
    while True:
        page = place.fs.call_s3("list_objects_v2", **pages)
        for item in page.get("Contents", ()):
            if item["Size"] or not item["Key"].endswith("/"):
                path = f"{bucket}/{item['Key']}"
                found[path] = {**item, "name": path, "size": item["Size"], "type": "file"}
        if not page.get("IsTruncated"):
            return found
        pages["ContinuationToken"] = page["NextContinuationToken"]


def glob(place: Place) -> dict[str, Any]:
    """As `find`, of the files that match a pattern."""
    if READERS.get(scheme(place.url)) == "s3" and "//" in place.path:  # fsspec takes // for /
        fixed = re.split(r"[*?\[]", place.path, maxsplit=1)[0].rpartition("/")[0]
        pattern = re.compile(glob_translate(place.path))
        below = find(replace(place, path=fixed))
        return {path: info for path, info in below.items() if pattern.match(path)}
    files = {}
    for path, info in place.fs.glob(place.path, detail=True).items():
        if info["type"] == "directory" and not place.is_local:
            # A listing shows a folder in place of a file of the same name.
            info = place.fs.info(path)
        if info["type"] != "directory":
            files[path] = info
    return files


def split(place: Place) -> tuple[Place, str]:
    """Returns the folder that a file lies in, and its name."""
    folder, _, name = place.path.rpartition("/")
    root = "/" if place.is_local else ""
    return Place(place.fs, folder or root, place.url.rpartition("/")[0] or root), name


def relative(path: str, folder: Place) -> str:
    """The path of a file below a folder, as `folder / name` takes it.

    Unlike a path of the file system, the key of an object may have any slashes and dots.
    """
    return path.removeprefix(folder.path).removeprefix("/")


def _below(folder: str, name: str) -> str:
    return f"{folder}{name}" if not folder or folder == "/" else f"{folder}/{name}"
