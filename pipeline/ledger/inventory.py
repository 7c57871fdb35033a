"""Compares the visible files of an output with those that its log knows, by one listing.

Files with other names or sizes than the log has are looked into; all others are not opened.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from mediamill.pipeline.ledger.compaction import FileInfo, file_info
from mediamill.pipeline.ledger.journal import read_journal
from mediamill.pipeline.ledger.log import HIDDEN
from mediamill.pipeline.ledger.state import LedgerState, VisibleFile
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

_THREADS = 16
_SHOWN = 3  # names of files in a sentence

Files = Mapping[str, VisibleFile]


@dataclass(frozen=True)
class Inventory:
    """The visible files now, and how they differ from those of the log.

    files: all that can be read, with their rows. gone: with the rows that they had.
    changed, added: with their rows now; -1 if the file cannot be read. The log does not know the
    added ones.
    compacted: whether a compaction has replaced files since the log recorded them.
    missing_rows: finished rows that no file seems to have.
    """

    files: Files
    gone: Files = field(default_factory=dict)
    changed: Files = field(default_factory=dict)
    added: Files = field(default_factory=dict)
    compacted: bool = False
    missing_rows: int = 0

    @property
    def differs(self) -> bool:
        return bool(self.gone or self.changed or self.added or self.missing_rows)

    def sentences(self) -> list[str]:
        """Says what differs, in a sentence for each kind."""
        texts = []
        if self.gone:
            rows = sum(file.rows for file in self.gone.values())
            texts.append(f"{_named(self.gone)} with {count(rows, 'row')} {_is(self.gone)} gone")
        if self.changed:
            broken = {name: file for name, file in self.changed.items() if file.rows < 0}
            whole = {name: file for name, file in self.changed.items() if file.rows >= 0}
            if whole:
                rows = sum(file.rows for file in whole.values())
                texts.append(
                    f"{_named(whole)} {_was(whole)} changed by something else than Mediamill; "
                    f"readers see {count(rows, 'row')} there"
                )
            if broken:
                texts.append(f"{_named(broken)} {_was(broken)} changed, and cannot be read")
        unreadable = {name: file for name, file in self.added.items() if file.rows < 0}
        if unreadable:
            texts.append(f"{_named(unreadable)} cannot be read, and no row needs them: remove them")
        if added := {n: file for n, file in self.added.items() if n not in unreadable}:
            rows = sum(file.rows for file in added.values())
            texts.append(
                f"{_named(added)} {_is(added)} not of Mediamill; readers see "
                f"{count(rows, 'row')} more"
            )
        return texts


def list_visible(output: Place) -> dict[str, int]:
    """Returns the bytes of the files that readers see, by name, sorted. One listing."""
    try:
        infos = storage.with_retries(output, lambda fs: storage.find(replace(output, fs=fs)))
    except FileNotFoundError:
        return {}
    sizes = {storage.relative(path, output): int(info["size"]) for path, info in infos.items()}
    visible = (name for name in sizes if name.endswith(".parquet") and not name.startswith(HIDDEN))
    return {name: sizes[name] for name in sorted(visible)}


def take_inventory(output: Place, state: LedgerState) -> Inventory:
    """Compares the visible files with those of the log.

    Without a record of them, by an older version of Mediamill, all footers are read.
    """
    sizes = list_visible(output)
    journal = read_journal(output)
    known = state.visible or {}
    expected = {
        name: file
        for name, file in known.items()
        if sizes.get(name) == file.bytes or (file.bytes < 0 and name in sizes)
    }
    # A killed run may have published these without a record; the next one does it again.
    underway = {*state.groups, *state.replacements}
    other = [name for name in sizes if name not in expected and name not in state.groups]
    footers = _footers(output, other)
    now = {
        name: VisibleFile(info.rows if info else -1, sizes[name]) for name, info in footers.items()
    }
    gone = {name: file for name, file in known.items() if name not in sizes}
    changed = {name: now[name] for name in other if name in known and name not in underway}
    added = {name: now[name] for name in other if name not in known}
    expected = {name: VisibleFile(file.rows, sizes[name]) for name, file in expected.items()} | {
        name: now[name] for name in other if name in state.replacements and name in known
    }
    if state.visible is None:
        files, added = {**added}, {}
        changed = {name: file for name, file in files.items() if file.rows < 0}
        files = {name: file for name, file in files.items() if file.rows >= 0}
        missing = state.counts.rows - state.hidden_rows - _rows(files)
        return Inventory(files, {}, changed, {}, False, max(0, missing))
    compacted = journal.folder is not None
    for folder in {name.rpartition("/")[0] for name in added}:
        merged = {n: file for n, file in added.items() if n.rpartition("/")[0] == folder}
        replaced = {n: file for n, file in gone.items() if n.rpartition("/")[0] == folder}
        merged = {n: file for n, file in merged.items() if (i := footers[n]) and i.sources}
        if not merged:
            continue
        compacted = True
        expected |= merged
        added = {n: file for n, file in added.items() if n not in merged}
        if _rows(merged) != _rows(replaced):  # other files are gone too
            sources = {name for n in merged if (i := footers[n]) for name, _ in i.sources}
            replaced = {n: f for n, f in replaced.items() if n.rpartition("/")[2] in sources}
        gone = {n: file for n, file in gone.items() if n not in replaced}
    if journal.folder is not None:  # its files are replaced now, or by the next run
        gone = {n: file for n, file in gone.items() if not n.startswith(journal.folder)}
        return Inventory(expected, gone, changed, added, True)
    readable = {n: file for n, file in {**changed, **added}.items() if file.rows >= 0}
    missing = state.counts.rows - state.hidden_rows - _rows(expected)
    missing -= sum(file.rows for name, file in changed.items() if file.rows >= 0)
    return Inventory(expected | readable, gone, changed, added, compacted, max(0, missing))


def record_of(files: Files) -> dict[str, tuple[int, int]]:
    """Returns the files as a record of the log has them."""
    return {name: (file.rows, file.bytes) for name, file in files.items()}


def count(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 row", "220 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _footers(output: Place, names: Iterable[str]) -> dict[str, FileInfo | None]:
    """Reads footers; None for files that cannot be read or are gone."""

    def read(name: str) -> FileInfo | None:
        try:
            return file_info(output / name, name)
        except (OSError, ValueError):  # pyarrow's errors are both
            return None

    names = list(names)
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(read, names), strict=True))


def _rows(files: Files) -> int:
    return sum(max(0, file.rows) for file in files.values())


def _named(files: Files) -> str:
    names = sorted(files)
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{count(len(names), 'file')} ({shown})"


def _is(files: Files) -> str:
    return "is" if len(files) == 1 else "are"


def _was(files: Files) -> str:
    return "was" if len(files) == 1 else "were"
