"""The state of an output, built from the records of its log: one bit for each manifest row.

A row is named by the number of its file and its index in that file. Files are numbered in the
order in which they were first seen; numbers never change. A file that the manifest no longer has is
retired: its finished rows are marked in the files that have them now.

Finished rows become visible in two steps: a commit leaves them as parts, one for each folder of the
result, and a group names the parts of one visible file. The state holds parts and groups until the
log records that the file is visible.

A finished row may be done again (a retry). Its new row is a replacement, a part for the visible
file that holds the old row, until the log records that the file was written again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mediamill.pipeline.ledger.bitmaps import Bitmap as Bitmap
from mediamill.pipeline.ledger.bitmaps import bitmap_of as bitmap_of
from mediamill.pipeline.ledger.bitmaps import (
    bits_of,
    is_marked,
    mark,
    rows_of,
)
from mediamill.pipeline.ledger.bitmaps import count_bits as count_bits
from mediamill.pipeline.ledger.bitmaps import text_of as text_of
from mediamill.pipeline.ledger.bitmaps import text_of_bitmap as text_of_bitmap
from mediamill.pipeline.ledger.counts import Counts as Counts

Rows = Mapping[int, npt.NDArray[np.int64]]  # file number -> row indices, ascending
Record = dict[str, Any]  # what one object of the log holds, as JSON
VERSION = 2  # of the records


@dataclass(frozen=True)
class KnownFile:
    """A manifest file as last seen.

    name: path relative to the manifest. rows: their number. digest: of the ids.
    stamp: see file_version.py.
    row_groups: rows of each.
    """

    name: str
    rows: int
    digest: str
    stamp: str = ""
    row_groups: tuple[int, ...] = ()

    @staticmethod
    def of(entry: Mapping[str, Any]) -> "KnownFile":
        """Parses the entry of a record; older records have neither stamp nor row groups."""
        stamp, row_groups = entry.get("stamp", ""), tuple(entry.get("row_groups", ()))
        return KnownFile(entry["name"], entry["rows"], entry["digest"], stamp, row_groups)


RETIRED = KnownFile("", 0, "")  # takes the place of a file whose rows are in other files now


@dataclass(frozen=True)
class Resharding:
    """How a manifest's rows are in other files than the ledger has them, if they are.

    sequence: of the state that this holds for.
    renamed: numbers of renamed files, by their present name.
    retired: numbers of the files that are gone or were rewritten.
    finished: by name of a file, which of its rows were finished in retired files. Together they are
        all finished rows of the retired files.
    """

    sequence: int = 0
    renamed: Mapping[str, int] = field(default_factory=dict)
    retired: frozenset[int] = frozenset()
    finished: Mapping[str, Bitmap] = field(default_factory=dict)


class Part(NamedTuple):
    """Finished rows of one folder of the result that are not visible yet.

    token: of the commit; it names the staged object.
    offset, length: of the part in that object, in bytes.
    start, stop: the range of the part's rows, since a group may have taken some.
    """

    token: str
    offset: int
    length: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


class Group(NamedTuple):
    """A file to be published: its path in the output, and the parts that it is made of."""

    name: str
    parts: tuple[Part, ...]


class VisibleFile(NamedTuple):
    """A file that readers see. bytes: -1 where an older version published it."""

    rows: int
    bytes: int


@dataclass
class LedgerState:
    """The state of the log up to record number `sequence`. The field names are part of snapshots.

    header: what the output is bound to.
    run: the run that started last; no other one may commit.
    owner: the process of the run that may commit; None for the one that started the run.
    closed: whether the run commits no more rows.
    fences: the numbers of all records that are not commits.
    rows_per_file: of the run.
    files: of the manifest, by number; `RETIRED` for those that it no longer has.
    done: for each file a bitmap of its finished rows.
    parts: by folder, in the order of their commits.
    groups: by name.
    counts: of the whole output. run_counts: of `run`.
    redo: for some files a bitmap of the finished rows that `run` has to do again.
    redo_only: whether the run does no other rows.
    replacements: by visible file, the parts whose rows take the place of old ones in it.
    visible: the files that readers see, by name; None = an older version has not recorded them.

    Derived from the fields above, and not stored:
    tokens: the number of references from parts and groups to each staged object.
    waiting: the number of rows in the parts of each folder.
    snapshot: the number of the log's newest snapshot, as far as this process has seen it.
    """

    header: Record | None = None
    sequence: int = 0
    run: str | None = None
    owner: str | None = None
    closed: bool = False
    fences: list[int] = field(default_factory=list)
    rows_per_file: int = 0
    files: list[KnownFile] = field(default_factory=list)
    done: list[Bitmap] = field(default_factory=list)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    run_counts: Counts = field(default_factory=Counts)
    redo: dict[int, Bitmap] = field(default_factory=dict)
    redo_only: bool = False
    replacements: dict[str, list[Part]] = field(default_factory=dict)
    visible: dict[str, VisibleFile] | None = None
    tokens: Counter[str] = field(init=False, default_factory=Counter)
    waiting: Counter[str] = field(init=False, default_factory=Counter)
    snapshot: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        for folder, parts in self.parts.items():
            self.waiting[folder] = sum(part.rows for part in parts)
        grouped = (group.parts for group in self.groups.values())
        replacing = self.replacements.values()
        every = chain(*self.parts.values(), *grouped, *replacing)
        self.tokens.update(part.token for part in every)

    @property
    def rows_to_redo(self) -> int:
        """The number of finished rows that the run has to do again."""
        return sum(map(count_bits, self.redo.values()))

    @property
    def hidden_rows(self) -> int:
        """The number of finished rows that no visible file has yet."""
        grouped = sum(part.rows for group in self.groups.values() for part in group.parts)
        return sum(self.waiting.values()) + grouped

    def rows_left(self, rows: int) -> int:
        """Returns how many rows the run has to do, of a manifest of `rows`."""
        return self.rows_to_redo + (0 if self.redo_only else rows - self.counts.rows)

    def apply(self, record: Record) -> None:
        """Applies the next record of the log. Raises ValueError when it is not valid."""
        self.sequence += 1
        kind = record["kind"]
        if kind != "commit":
            self.fences.append(self.sequence)
        if kind == "open":
            if record["version"] != VERSION:
                raise ValueError(f"version {record['version']}, expected {VERSION}")
            self.header = record
            self.visible = {} if record.get("inventory") else None
        elif kind in ("start", "reshard"):
            self.run, self.owner, self.closed = record["run"], None, False
            self.rows_per_file = record["rows_per_file"]
            self.run_counts, self.redo, self.redo_only = Counts(), {}, False
            for number in record.get("retired", ()):
                self.files[number], self.done[number] = RETIRED, np.zeros(0, np.uint8)
            for entry in record["files"]:
                self._add_file(entry["number"], KnownFile.of(entry))
            for number, text in record.get("finished", {}).items():
                self.done[int(number)] |= bitmap_of(text)
        elif kind == "owner":
            self.owner, self.closed = record["owner"], record["closing"]
        elif kind == "commit":
            for commit in record["commits"]:
                self._finish(commit)
            for folder, rows, name in record["groups"]:
                self._group(folder, rows, name)
            sizes = record.get("bytes") or [-1] * len(record["published"])
            for name, size in zip(record["published"], sizes, strict=True):
                self._drop_group(name, size)
            for name, rows, size in record.get("rewritten", ()):
                self._drop(self.replacements.pop(name, ()))
                self._set_visible(name, rows, size)
        elif kind == "retry":
            self.redo = {int(number): bitmap_of(text) for number, text in record["redo"].items()}
            self.redo_only = record["only"]
        elif kind == "reopen":
            for number, text in record["rows"].items():
                self.done[int(number)] = self.done[int(number)] & ~bitmap_of(text)
            self.counts = Counts(**record["counts"])
        elif kind == "end":
            self.owner, self.closed = None, True
        elif kind != "inventory":
            raise ValueError(f"record {self.sequence} of the log is of an unknown kind: {kind!r}")
        if (visible := record.get("visible")) is not None:
            self.visible = {name: VisibleFile(*values) for name, values in visible.items()}

    def become(self, other: "LedgerState") -> None:
        """Replaces this state by a later one of the same log."""
        self.__dict__.update(other.__dict__)

    def finished(self, rows: Rows) -> Rows:
        """Returns those of the rows that are finished."""
        finished = {n: indices[self._is_finished(n, indices)] for n, indices in rows.items()}
        return {number: indices for number, indices in finished.items() if indices.size}

    def unfinished(self, number: int, rows: int) -> int:
        """Returns how many rows of a file of `rows` the run has to do."""
        redo = count_bits(self.redo[number]) if number in self.redo else 0
        return redo if self.redo_only else rows - count_bits(self.done[number]) + redo

    def pending(self, number: int, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Returns which rows from start to stop of a file are unfinished: [stop - start]."""
        pending = ~bits_of(self.done[number], start, stop)
        redo = np.zeros_like(pending)
        if number in self.redo:
            redo = bits_of(self.redo[number], start, stop)
        return redo if self.redo_only else pending | redo

    def _finish(self, commit: Record) -> None:
        counts = Counts(**commit["counts"])
        self.counts.add(counts)
        self.run_counts.add(counts)
        self.counts.subtract(Counts(**commit.get("replaced", {})))
        for number, text in commit["rows"].items():
            self._mark(int(number), rows_of(text))
        for name, offset, length, rows in commit.get("replacements", ()):
            part = Part(commit["token"], offset, length, 0, rows)
            self.replacements.setdefault(name, []).append(part)
            self.tokens[part.token] += 1
        for folder, offset, length, rows in commit["parts"]:
            part = Part(commit["token"], offset, length, 0, rows)
            self.parts.setdefault(folder, []).append(part)
            self.waiting[folder] += rows
            self.tokens[part.token] += 1

    def _group(self, folder: str, rows: int, name: str) -> None:
        """Moves the folder's oldest `rows` rows into a new group."""
        if not 0 < rows <= self.waiting[folder] or name in self.groups:
            raise ValueError(f"{name}: a group of {rows} rows that are not there")
        grouped: list[Part] = []
        parts, missing = self.parts[folder], rows
        while missing:
            part = parts[len(grouped)]
            stop = min(part.stop, part.start + missing)
            grouped.append(part._replace(stop=stop))
            missing -= stop - part.start
        del parts[: len(grouped)]
        if stop < part.stop:  # the last part is split
            parts.insert(0, part._replace(start=stop))
            self.tokens[part.token] += 1
        self.waiting[folder] -= rows
        if not parts:
            del self.parts[folder], self.waiting[folder]
        self.groups[name] = Group(name, tuple(grouped))

    def _drop_group(self, name: str, size: int) -> None:
        """Removes a group whose file is visible, and the references to its parts."""
        parts = self.groups.pop(name).parts
        self._drop(parts)
        self._set_visible(name, sum(part.rows for part in parts), size)

    def _set_visible(self, name: str, rows: int, size: int) -> None:
        if self.visible is not None:
            self.visible[name] = VisibleFile(rows, size)

    def _drop(self, parts: Iterable[Part]) -> None:
        """Removes the references to parts whose rows are visible."""
        for part in parts:
            self.tokens[part.token] -= 1
            if not self.tokens[part.token]:
                del self.tokens[part.token]

    def _add_file(self, number: int, file: KnownFile) -> None:
        size = -(-file.rows // 8)
        if number == len(self.files):
            self.files.append(file)
            self.done.append(np.zeros(size, np.uint8))
        else:  # the file has grown, or has another name
            self.files[number] = file
            self.done[number] = np.pad(self.done[number], (0, size - self.done[number].size))

    def _is_finished(self, number: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        finished = is_marked(self.done[number], indices)
        if number in self.redo:
            finished &= ~is_marked(self.redo[number], indices)
        return finished

    def _mark(self, number: int, indices: npt.NDArray[np.int64]) -> None:
        mark(self.done[number], indices)
        if number in self.redo:
            again = np.zeros_like(self.done[number])
            mark(again, indices)
            self.redo[number] = self.redo[number] & ~again[: self.redo[number].size]
