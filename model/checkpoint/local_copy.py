"""Copies the weights of a checkpoint from a URL to this machine, once for all of its processes.

    CACHE/<hash>/           a complete copy with that content hash
    CACHE/<hash>.lock       locked by the process that makes the copy
    CACHE/.<hash>.partial/  a copy that is not complete

Jobs copy whole checkpoints, see pipeline/checkpoint/machine_copy.py.
"""

import fcntl
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mediamill.model.checkpoint.content_hash import content_hash
from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError

_CACHE = "~/.cache/mediamill"
_REQUEST_BYTES = 4 * 1024 * 1024  # bytes of one request
_CONCURRENT_REQUESTS = 4


def local_copy(folder: Folder, names: Sequence[str]) -> Folder:
    """Returns the folder itself if it is local, else a copy of its files `names`.

    Messages about the copy show the URL. Raises ModelError when a file cannot be read or changes
    while it is copied, and when the cache folder cannot be written.
    """
    if folder.is_local:
        return folder
    sizes = _sizes(folder, names)
    digest = content_hash(sizes, folder.read_range)
    cache = Path(_CACHE).expanduser()
    copy, partial = (folder.moved_to(cache / name) for name in (digest, f".{digest}.partial"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{digest}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _has_content(copy, names, digest):
                for leftover in (copy, partial):
                    shutil.rmtree(leftover.root, ignore_errors=True)
                Path(partial.root).mkdir()
                _download(folder, sizes, Path(partial.root))
                if not _has_content(partial, names, digest):
                    shutil.rmtree(partial.root)
                    raise ModelError(f"{folder}: the weights have changed while they were copied")
                Path(partial.root).rename(copy.root)
    except OSError as error:
        raise ModelError(
            f"{folder} cannot be copied to {cache} ({error.strerror or error}): make room there, "
            "or copy the checkpoint to a folder of this machine and name that"
        ) from error
    return copy


def _sizes(folder: Folder, names: Sequence[str]) -> dict[str, int]:
    sizes = {name: folder.size(name) for name in names}
    for name, size in sizes.items():
        if size is None:
            raise ModelError(f"{folder.path(name)}: found no such file, expected weights")
    return {name: size for name, size in sizes.items() if size is not None}


def _has_content(copy: Folder, names: Sequence[str], digest: str) -> bool:
    """Whether the copy is complete and undamaged."""
    try:
        return content_hash(_sizes(copy, names), copy.read_range) == digest
    except ModelError:
        return False


def _download(folder: Folder, sizes: dict[str, int], target: Path) -> None:
    def copy_range(name: str, start: int) -> None:
        data = folder.read_range(name, start, min(start + _REQUEST_BYTES, sizes[name]))
        descriptor = os.open(target / name, os.O_WRONLY | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    pool = ThreadPoolExecutor(_CONCURRENT_REQUESTS, thread_name_prefix="checkpoint")
    try:
        ranges = [
            pool.submit(copy_range, name, start)
            for name, size in sizes.items()
            for start in range(0, max(size, 1), _REQUEST_BYTES)
        ]
        for copied in ranges:
            copied.result()
    finally:
        pool.shutdown(cancel_futures=True)
