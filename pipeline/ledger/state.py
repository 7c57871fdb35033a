"""The state of an output, built from the records of its log: one bit for each manifest row.

A row is named by the number of its file and its index in that file. Files are numbered in the
order in which they were first seen; numbers never change. A file that the manifest no longer has is
retired: its finished rows are marked in the files that have them now.

Finished rows become visible in two steps: a commit leaves them as parts, one for each folder of the
result, and a group names the parts of one visible file. The state holds parts and groups until the
log records that the file is visible.
"""

import base64
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Rows = Mapping[int, npt.NDArray[np.int64]]  # file number -> row indices, ascending
Record = dict[str, Any]  # what one object of the log holds, as JSON
Bitmap = npt.NDArray[np.uint8]  # row i at bit i % 8 of byte i // 8
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


@dataclass
class Counts:
    """The number of finished rows by status, of their tokens, and of rows with each finding.

    findings: by kind, see pipeline/quality/findings.py; older records have none.
    """

    ok: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    visual_tokens: int = 0
    output_tokens: int = 0
    findings: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.ok + sum(self.errors.values())

    def add(self, other: "Counts") -> None:
        self.ok += other.ok
        self.errors = dict(Counter(self.errors) + Counter(other.errors))
        self.prompt_tokens += other.prompt_tokens
        self.visual_tokens += other.visual_tokens
        self.output_tokens += other.output_tokens
        self.findings = dict(Counter(self.findings) + Counter(other.findings))


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
    tokens: Counter[str] = field(init=False, default_factory=Counter)
    waiting: Counter[str] = field(init=False, default_factory=Counter)
    snapshot: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        for folder, parts in self.parts.items():
            self.waiting[folder] = sum(part.rows for part in parts)
        grouped = (group.parts for group in self.groups.values())
        self.tokens.update(part.token for part in chain(*self.parts.values(), *grouped))

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
        elif kind in ("start", "reshard"):
            self.run, self.owner, self.closed = record["run"], None, False
            self.rows_per_file = record["rows_per_file"]
            self.run_counts = Counts()
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
            for name in record["published"]:
                self._drop_group(name)
        elif kind == "end":
            self.owner, self.closed = None, True
        else:
            raise ValueError(f"record {self.sequence} of the log is of an unknown kind: {kind!r}")

    def become(self, other: "LedgerState") -> None:
        """Replaces this state by a later one of the same log."""
        self.__dict__.update(other.__dict__)

    def finished(self, rows: Rows) -> Rows:
        """Returns those of the rows that are finished."""
        finished = {number: rows[number][self._is_done(number, rows[number])] for number in rows}
        return {number: indices for number, indices in finished.items() if indices.size}

    def pending(self, number: int, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Returns which rows from start to stop of a file are unfinished: [stop - start]."""
        first = start // 8
        bits = np.unpackbits(self.done[number][first : -(-stop // 8)], bitorder="little")
        pending: npt.NDArray[np.bool_] = bits[start - first * 8 : stop - first * 8] == 0
        return pending

    def _finish(self, commit: Record) -> None:
        counts = Counts(**commit["counts"])
        self.counts.add(counts)
        self.run_counts.add(counts)
        for number, text in commit["rows"].items():
            self._mark(int(number), rows_of(text))
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

    def _drop_group(self, name: str) -> None:
        """Removes a group whose file is visible, and the references to its parts."""
        for part in self.groups.pop(name).parts:
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

    def _is_done(self, number: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        bits: npt.NDArray[np.bool_] = (self.done[number][indices >> 3] >> (indices & 7)) & 1 == 1
        return bits

    def _mark(self, number: int, indices: npt.NDArray[np.int64]) -> None:
        bits = np.left_shift(1, indices & 7).astype(np.uint8)
        np.bitwise_or.at(self.done[number], indices >> 3, bits)


def text_of(indices: npt.NDArray[np.int64]) -> str:
    """Formats ascending row indices, like "0-63,70"."""
    if not indices.size:
        return ""
    breaks = np.flatnonzero(np.diff(indices) != 1)
    starts = indices[np.concatenate(([0], breaks + 1))]
    ends = indices[np.concatenate((breaks, [indices.size - 1]))]
    return ",".join(
        f"{start}-{end}" if end > start else f"{start}"
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    )


def text_of_bitmap(bitmap: Bitmap) -> str:
    """Formats a bitmap in printable characters, compressed."""
    return base64.b64encode(zlib.compress(bitmap.tobytes(), level=1)).decode()


def bitmap_of(text: str) -> Bitmap:
    """Parses the bitmap that `text_of_bitmap` formatted. Raises ValueError if it is damaged."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    except zlib.error as error:
        raise ValueError(f"a bitmap cannot be read: {error}") from error


def count_bits(bitmap: Bitmap) -> int:
    """Returns the number of rows that a bitmap marks."""
    return int(np.bitwise_count(bitmap).sum(dtype=np.int64))


def rows_of(text: str) -> npt.NDArray[np.int64]:
    """Parses the row indices that `text_of` formatted."""
    parts = [part.partition("-") for part in text.split(",") if part]
    spans = [np.arange(int(first), int(last or first) + 1) for first, _, last in parts]
    return np.concatenate(spans) if spans else np.empty(0, np.int64)
