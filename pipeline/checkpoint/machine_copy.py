"""Copies the checkpoint of a job to a folder of this machine, once for all of its processes.

    CACHE/<hash>/             a complete copy, which had that hash before it got its name
    CACHE/<hash>.lock         locked by the process that makes the copy
    CACHE/.<hash>.partial/    a copy that is not complete; `.pieces` in it lists its chunks

After a kill the next process fetches only the chunks that are missing.
"""

import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mediamill.pipeline.checkpoint.checkpoint_hash import (
    CheckpointHash,
    content_hash,
    names_of,
    place_of,
)
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.disk_room import free_room, is_full
from mediamill.pipeline.storage.file_version import file_version, same_content
from mediamill.pipeline.storage.retries import IncompleteError, classify_error
from mediamill.pipeline.storage.storage import Place

_CHUNK_BYTES = 16 * 1024**2
_CONCURRENT_CHUNKS = 8  # all of them are held in memory
_STALE_S = 24 * 3600.0  # a partial copy that was not touched for so long is removed
_CHUNK_LOG = ".pieces"


def local_folder(model: str, content: CheckpointHash, cache: str, weights: bool = True) -> Path:
    """Returns the folder of a local checkpoint, or of a copy of another one below `cache`.

    content: the hashes that the checkpoint had when the job was checked.
    cache: a folder of this machine; may begin with ~.
    weights: whether they are needed; without them the copy is small.
    Processes of one machine wait for each other. Raises RunError when the checkpoint has changed or
    cannot be read, and when the copy cannot be written.
    """
    place = place_of(model)
    digest = content.whole if weights else content.settings
    if place.is_local:
        _check_local(place, digest, weights)
        return Path(place.path)
    root = Path(cache).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name in {content.whole, digest}:
            if _has_content(root / name, digest, weights):
                return root / name
        with _locked(root / f"{digest}.lock"):
            if not _has_content(root / digest, digest, weights):
                _remove_stale(root)
                _make_copy(place, root, digest, weights)
        return root / digest
    except RunError:
        raise
    except Exception as error:  # each storage library has its own
        raise RunError(_error_sentence(error, place, root)) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_local(place: Place, digest: str, weights: bool) -> None:
    """Raises RunError unless this machine has the same checkpoint at that path."""
    try:
        actual = content_hash(place, weights)
    except OSError as error:
        raise RunError(
            f"{place.url}: the checkpoint cannot be read on machine {os.uname().nodename} "
            f"({error.strerror or error}), expected it on every machine: put it there, or where "
            "all reach it (model)"
        ) from error
    if actual != digest:
        raise RunError(
            f"{place.url}: found another checkpoint on machine {os.uname().nodename} (content "
            f"{actual}) than where the job was checked ({digest}), expected the same everywhere: "
            "copy it there, or put it where all reach it (model)"
        )


def _has_content(folder: Path, digest: str, weights: bool) -> bool:
    """Whether a copy exists and has this hash: other programs may write to the cache too."""
    try:
        return content_hash(storage.resolve(str(folder)), weights) == digest
    except OSError:
        return False


def _make_copy(source: Place, root: Path, digest: str, weights: bool) -> None:
    """Makes the folder `digest` below `root`. The caller holds its lock."""
    target, partial = root / digest, root / f".{digest}.partial"
    shutil.rmtree(target, ignore_errors=True)  # its content does not have the hash of its name
    partial.mkdir(exist_ok=True)
    files = _files(source, weights)
    missing = _missing_chunks(partial, files)
    _check_free_space(source, root, sum(chunk.size for chunk in missing))
    _fetch(source, partial, missing)
    actual = content_hash(storage.resolve(str(partial)), weights)
    if actual != digest or _changed(files, _files(source, weights)):
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"{storage.redact(source.url)}: the checkpoint has changed since the job was "
            f"checked: found content {actual}, expected {digest}; start the job again"
        )
    storage.fsync(partial)
    partial.rename(target)
    storage.fsync(root)
    (target / _CHUNK_LOG).unlink()


class _File(NamedTuple):
    name: str
    size: int
    version: str  # see file_version


class _Chunk(NamedTuple):
    name: str  # of the file
    offset: int
    size: int


def _files(source: Place, weights: bool) -> list[_File]:
    def file(name: str) -> _File:
        info = source.fs.info((source / name).path)
        return _File(name, int(info["size"]), file_version(source / name, info))

    return storage.with_retries(source, lambda _: list(map(file, names_of(source, weights))))


def _changed(files: list[_File], later: list[_File]) -> bool:
    return [file[:2] for file in files] != [file[:2] for file in later] or not all(
        same_content(was.version, now.version) for was, now in zip(files, later, strict=True)
    )


def _missing_chunks(partial: Path, files: list[_File]) -> list[_Chunk]:
    """Returns the chunks that the log of `partial` does not list.

    Clears the folder first if it belongs to other files, or if the storage reports no versions.
    """
    path = partial / _CHUNK_LOG
    header = json.dumps(files)
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
    complete = [line.rstrip("\n") for line in lines if line.endswith("\n")]
    if not complete or complete[0] != header or any(not file.version for file in files):
        shutil.rmtree(partial)
        partial.mkdir()
        path.write_text(header + "\n", encoding="utf-8")
        complete = [header]
    elif len(complete) < len(lines):  # a kill has cut the last line off
        path.write_text("\n".join([*complete, ""]), encoding="utf-8")
    done = set(complete[1:])
    return [
        _Chunk(file.name, offset, min(_CHUNK_BYTES, file.size - offset))
        for file in files
        for offset in range(0, max(file.size, 1), _CHUNK_BYTES)
        if f"{offset} {file.name}" not in done
    ]


def _fetch(source: Place, partial: Path, chunks: list[_Chunk]) -> None:
    """Fetches the chunks and lists each in the log. Raises the error of a chunk that fails."""
    failed = threading.Event()
    lock = threading.Lock()

    def fetch(chunk: _Chunk) -> None:
        if failed.is_set():
            return
        try:
            data = storage.with_retries(source, lambda fs: _read(fs, source, chunk))
            _write(partial / chunk.name, data, chunk.offset)
            with lock:
                log.write(f"{chunk.offset} {chunk.name}\n")
                log.flush()
        except BaseException:
            failed.set()
            raise

    with (
        (partial / _CHUNK_LOG).open("a", encoding="utf-8") as log,
        ThreadPoolExecutor(_CONCURRENT_CHUNKS, thread_name_prefix="checkpoint") as threads,
    ):
        list(threads.map(fetch, chunks))


def _read(fs: Any, source: Place, chunk: _Chunk) -> bytes:
    if not chunk.size:
        return b""
    path, stop = (source / chunk.name).path, chunk.offset + chunk.size
    data = bytes(fs.cat_file(path, start=chunk.offset, end=stop))
    if len(data) != chunk.size:
        raise IncompleteError(f"got {len(data)} bytes, expected {chunk.size}")
    return data


def _write(path: Path, data: bytes, offset: int) -> None:
    """Writes durably: a chunk that is listed has to be there after a crash of the machine."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_free_space(source: Place, root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise RunError(
            f"{root} on machine {os.uname().nodename}: found {free / 1e9:.1f} GB free, expected "
            f"{needed / 1e9:.1f} GB for a copy of {storage.redact(source.url)}: make room there, "
            "or name another folder (resources.cache)"
        )


def _error_sentence(error: Exception, place: Place, root: Path) -> str:
    where = f"{root} on machine {os.uname().nodename}"
    local = isinstance(error, OSError) and str(error.filename or "").startswith(str(root))
    number = error.errno if isinstance(error, OSError) else None
    if is_full(error):
        return (
            f"{where}: the disk is full ({free_room(root)}), expected room for a copy of "
            f"{storage.redact(place.url)}: make room there, or name another folder "
            "(resources.cache)"
        )
    if local and number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return (
            f"{where}: cannot be written ({os.strerror(number)}), expected a folder for copies of "
            "models: name another one (resources.cache)"
        )
    reason = classify_error(error).reason
    return f"{storage.redact(place.url)}: the checkpoint cannot be copied: {reason}"


def _remove_stale(root: Path) -> None:
    """Removes partial copies that no process has worked on for a day."""
    for partial in root.glob(".*.partial"):
        with (root / f"{partial.name[1:].removesuffix('.partial')}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                touched = [path.stat().st_mtime for path in (partial, *partial.iterdir())]
                if time.time() - max(touched) > _STALE_S:
                    shutil.rmtree(partial, ignore_errors=True)
            except OSError:  # another process makes it, or it is gone
                continue
