"""Replaces files of a local folder all at once: the folder is exchanged with a new one in one step.

The new folder holds links to the same content. Folders cannot have two names: a folder in the old
one gets a symbolic link in its place, which leads to it in the new one; so its path is good at
every moment. The old folder stays for a moment, for readers that are listing it.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mediamill.pipeline.ledger.exchange import can_exchange, exchange
from mediamill.pipeline.ledger.journal import Journal, hidden_file, work_folder
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_GRACE_S = 1.0  # a listing of a folder takes far less


def can_swap(output: Place) -> bool:
    """Returns whether folders of the output can be exchanged with new ones beside it."""
    if not output.is_local:
        return False
    try:
        return can_exchange(Path(work_folder(output).path), _beside(output))
    finally:
        _remove_empty(_beside(output))


def is_plain(folder: Path) -> bool:
    """Whether a folder has only files, so that another one can be made of links to them."""
    if folder.is_symlink():
        return False
    return all(path.is_file() and not path.is_symlink() for path in folder.iterdir())


def swap(output: Place, journal: Journal) -> None:
    """Makes the journal's files visible instead of their sources. May be repeated.

    Raises OSError when the folder cannot be exchanged, as one that a file system is mounted on;
    nothing has changed for readers then.
    """
    folder = _folder(output, journal)
    new = _beside(output) / "new"
    if not (folder / journal.files[0].name).exists():
        _take_back(folder, new)
        try:
            _build(output, journal, folder, new)
            for path in _subfolders(folder):
                _lend(path, new)
            exchange(folder, new)
        except OSError:
            _take_back(folder, new)
            _remove_files(new)
            raise
        storage.fsync(folder.parent)
    if new.exists():
        # A file that has come while the new folder was made.
        known = {source for file in journal.files for source in file.sources}
        for path in new.iterdir():
            if path.name not in known and not os.path.lexists(folder / path.name):
                path.rename(folder / path.name)
        new.rename(new.with_name(f"old-{journal.number}"))
    remove_old(output)


def remove_old(output: Place, wait: bool = False) -> None:
    """Removes old folders that no listing is about any more. wait: for the last ones, too."""
    beside = _beside(output)
    if not output.is_local or not beside.exists():
        return
    for path in beside.glob("old-*"):
        age = time.time() - path.stat().st_ctime
        if age < _GRACE_S:
            if not wait:
                continue
            time.sleep(min(_GRACE_S - age, _GRACE_S))  # the clock may have been set back
        _remove_files(path)
    if wait:
        _remove_empty(beside)


def _folder(output: Place, journal: Journal) -> Path:
    # A user may have made a link to the output: the folder itself is exchanged, not the link.
    return Path((output / (journal.folder or "")).path.rstrip("/")).resolve()


def _beside(output: Place) -> Path:
    """The folder beside the output: readers take every *.parquet below the output itself."""
    path = Path(output.path).resolve()
    return path.parent / f".{path.name}.compaction"


def _subfolders(folder: Path) -> Iterator[Path]:
    return (path for path in list(folder.iterdir()) if path.is_dir() and not path.is_symlink())


def _build(output: Place, journal: Journal, folder: Path, new: Path) -> None:
    """Makes the folder that will have the place of the old one, of links to the same content."""
    _remove_files(new)
    new.mkdir(parents=True)
    for file in journal.files:
        source = Path(hidden_file(output, file.name).path)
        if not source.exists():
            raise JobError(f"{storage.redact(output.url)}: the compaction's {source.name} is gone")
        (new / file.name).hardlink_to(source)
    sources = {source for file in journal.files for source in file.sources}
    for path in folder.iterdir():
        if path.is_symlink():
            (new / path.name).symlink_to(path.readlink())
        elif not path.is_dir() and path.name not in sources:
            (new / path.name).hardlink_to(path)
    shutil.copystat(folder, new)
    os.chown(new, folder.stat().st_uid, folder.stat().st_gid)
    storage.fsync(new)


def _lend(path: Path, new: Path) -> None:
    """Moves a subfolder to the new folder; a link in its place leads there."""
    target = os.path.relpath(new / path.name, path.parent)
    # Another process may follow the link at the moment of the exchange, when it lies in the folder
    # `new`: there, too, it leads to the subfolder.
    from_there = Path(os.path.normpath(new / target)).parent
    if not from_there.exists():
        from_there.parent.mkdir(parents=True, exist_ok=True)
        from_there.symlink_to(path.parent)
    (new / path.name).symlink_to(target)
    exchange(path, new / path.name)


def _take_back(folder: Path, new: Path) -> None:
    """Undoes `_lend` for all subfolders."""
    for path in _subfolders(new) if new.exists() else ():
        exchange(folder / path.name, path)


def _remove_files(folder: Path) -> None:
    """Removes a folder of files and links, if it exists, but no folder that may lie in it."""
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _remove_empty(beside: Path) -> None:
    _remove_files(beside / beside.name)
    if beside.exists() and not any(beside.iterdir()):
        beside.rmdir()
