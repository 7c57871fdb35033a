"""Turns a checkpoint that lies elsewhere into a folder of this machine, once for all processes.

    CACHE/<hash>/             complete, and found to have that hash before it got its name
    CACHE/<hash>.lock         who holds it may make the folder; a process that is killed lets it go
    CACHE/.<hash>.partial/    what has come so far; `.pieces` in it says which parts that is

Large files come in pieces, several at once. After a kill the next process goes on with the pieces
that are there. What the files mean is not known here.
"""

import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mediamill.pipeline.checkpoint.content_hash import (
    CheckpointHash,
    content_hash,
    names_of,
    place_of,
)
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.file_version import file_version, same_content
from mediamill.pipeline.storage.retries import IncompleteError, classify_error
from mediamill.pipeline.storage.storage import Place

_PIECE_BYTES = 16 * 1024**2
_AT_ONCE = 8  # pieces; all are held in memory
_STALE_S = 24 * 3600.0  # after which nobody will go on with a copy that was cut off
_PIECES = ".pieces"


def local_folder(model: str, content: CheckpointHash, cache: str, weights: bool = True) -> Path:
    """The checkpoint as a folder of this machine: itself, or a copy below `cache`, made once.

    model: as the job names it. content: what it has to hold. cache: may begin with ~. weights:
    whether they are needed; without them the copy is small. Processes of one machine wait for each
    other.
    Raises RunError when the checkpoint is another one by now, cannot be read, or finds no room.
    """
    place = place_of(model)
    wanted = content.whole if weights else content.settings
    if place.is_local:
        _check_local(place, wanted, weights)
        return Path(place.path)
    root = Path(cache).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name in {content.whole, wanted}:
            if _holds(root / name, wanted, weights):
                return root / name
        with _locked(root / f"{wanted}.lock"):
            if not _holds(root / wanted, wanted, weights):
                _sweep(root)
                _make(place, root, wanted, weights)
        return root / wanted
    except RunError:
        raise
    except Exception as error:  # the storage libraries' own, of any kind
        raise RunError(_why(error, place, root)) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_local(place: Place, wanted: str, weights: bool) -> None:
    """A path names another folder on each machine, unless they share it."""
    try:
        found = content_hash(place, weights)
    except OSError as error:
        raise RunError(
            f"{place.url}: the checkpoint cannot be read on machine {os.uname().nodename} "
            f"({error.strerror or error}), expected it on every machine: put it there, or where "
            "all reach it (model)"
        ) from error
    if found != wanted:
        raise RunError(
            f"{place.url}: found another checkpoint on machine {os.uname().nodename} (content "
            f"{found}) than where the job was checked ({wanted}), expected the same everywhere: "
            "copy it there, or put it where all reach it (model)"
        )


def _holds(folder: Path, wanted: str, weights: bool) -> bool:
    """Whether a copy is there and still what it was: others may write below the cache too."""
    try:
        return content_hash(storage.resolve(str(folder)), weights) == wanted
    except OSError:
        return False


def _make(source: Place, root: Path, wanted: str, weights: bool) -> None:
    """Makes the folder `wanted`. The caller holds its lock."""
    target, partial = root / wanted, root / f".{wanted}.partial"
    shutil.rmtree(target, ignore_errors=True)  # one that is not what its name says
    partial.mkdir(exist_ok=True)
    files = _files(source, weights)
    pieces = _Pieces.of(partial, files)
    try:
        _check_room(source, root, sum(size for _, size, _ in pieces.missing))
        _fetch(source, partial, pieces)
        found = content_hash(storage.resolve(str(partial)), weights)
        if found != wanted or _changed(files, _files(source, weights)):
            shutil.rmtree(partial, ignore_errors=True)
            raise RunError(
                f"{storage.redact(source.url)}: the checkpoint has changed since the job was "
                f"checked: found content {found}, expected {wanted}; start the job again"
            )
    finally:
        pieces.close()
    storage.fsync_folder(partial)
    partial.rename(target)
    storage.fsync_folder(root)
    (target / _PIECES).unlink()


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    stamp: str


def _files(source: Place, weights: bool) -> list[_File]:
    def found() -> list[_File]:
        files = []
        for name in names_of(source, weights):
            info = source.fs.info((source / name).path)
            files.append(_File(name, int(info["size"]), file_version(source / name, info)))
        return files

    return storage.with_retries(source, lambda _: found())


def _changed(files: list[_File], later: list[_File]) -> bool:
    return [one.name for one in files] != [one.name for one in later] or any(
        was.size != now.size or not same_content(was.stamp, now.stamp)
        for was, now in zip(files, later, strict=True)
    )


class _Pieces:
    """The parts of files that are still missing; those that have come are noted in a file.

    missing: name of the file, bytes, and the offset.
    """

    def __init__(self, path: Path, missing: list[tuple[str, int, int]]) -> None:
        self.missing = missing
        self._lock = threading.Lock()
        self._log = path.open("a", encoding="utf-8")

    @classmethod
    def of(cls, partial: Path, files: list[_File]) -> "_Pieces":
        """Goes on with what is in `partial`, if it is of these files, or begins anew."""
        path = partial / _PIECES
        head = json.dumps([[one.name, one.size, one.stamp] for one in files])
        lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
        whole = [line.rstrip("\n") for line in lines if line.endswith("\n")]
        if not whole or whole[0] != head or any(not one.stamp for one in files):
            shutil.rmtree(partial)
            partial.mkdir()
            path.write_text(head + "\n", encoding="utf-8")
            whole = [head]
        elif len(whole) < len(lines):  # a kill has cut the last line off
            path.write_text("\n".join([*whole, ""]), encoding="utf-8")
        done = set(whole[1:])
        return cls(
            path,
            [
                (one.name, min(_PIECE_BYTES, one.size - offset), offset)
                for one in files
                for offset in range(0, max(one.size, 1), _PIECE_BYTES)
                if f"{offset} {one.name}" not in done
            ],
        )

    def done(self, name: str, offset: int) -> None:
        """A piece is on the disk."""
        with self._lock:
            self._log.write(f"{offset} {name}\n")
            self._log.flush()

    def close(self) -> None:
        self._log.close()


def _fetch(source: Place, partial: Path, pieces: _Pieces) -> None:
    """Brings what is missing. Raises what the first piece that cannot be brought does."""
    failed = threading.Event()

    def bring(piece: tuple[str, int, int]) -> None:
        if failed.is_set():
            return
        name, size, offset = piece
        try:
            read = _reader(source / name, size, offset)
            data = storage.with_retries(source, read) if size else b""
            _write(partial / name, data, offset)
            pieces.done(name, offset)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="checkpoint") as threads:
        for one in [threads.submit(bring, piece) for piece in pieces.missing]:
            one.result()


def _reader(place: Place, size: int, offset: int) -> Callable[..., bytes]:
    def read(fs: Any) -> bytes:
        data = bytes(fs.cat_file(place.path, start=offset, end=offset + size))
        if len(data) != size:
            raise IncompleteError(f"got {len(data)} bytes, expected {size}")
        return data

    return read


def _write(path: Path, data: bytes, offset: int) -> None:
    """Durable when it returns: a piece that is noted as there has to survive the machine's end."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_room(source: Place, root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise RunError(
            f"{root} on machine {os.uname().nodename}: found {free / 1e9:.1f} GB free, expected "
            f"{needed / 1e9:.1f} GB for a copy of {storage.redact(source.url)}: make room there, "
            "or name another folder (resources.cache)"
        )


def _why(error: Exception, place: Place, root: Path) -> str:
    """What to tell of an error of the storage or of the disk."""
    where = f"{root} on machine {os.uname().nodename}"
    local = isinstance(error, OSError) and str(error.filename or "").startswith(str(root))
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{where}: the disk is full, expected room for a copy of {storage.redact(place.url)}: "
            "make room there, or name another folder (resources.cache)"
        )
    if local and number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return (
            f"{where}: cannot be written ({os.strerror(number)}), expected a folder for copies of "
            "models: name another one (resources.cache)"
        )
    reason = classify_error(error).reason
    return f"{storage.redact(place.url)}: the checkpoint cannot be copied: {reason}"


def _sweep(root: Path) -> None:
    """Removes copies that were cut off long ago and that nobody makes now."""
    for partial in root.glob(".*.partial"):
        with (root / f"{partial.name[1:].removesuffix('.partial')}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                touched = [one.stat().st_mtime for one in (partial, *partial.iterdir())]
                if time.time() - max(touched) > _STALE_S:
                    shutil.rmtree(partial, ignore_errors=True)
            except OSError:  # somebody makes it, or it is gone
                continue
