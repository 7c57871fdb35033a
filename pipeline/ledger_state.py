"""Turns the records of an output's log into what is known of it: one bit for each manifest row.

A row is named by its ordinal: the file's number in the ledger and the row's index in that file.
Numbers are given in the order in which files were first seen, and never change. Nothing is read or
written here.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = Mapping[int, npt.NDArray[np.int64]]  # file number -> row indices, ascending
Record = dict[str, Any]  # what one object of the log holds, as JSON


@dataclass(frozen=True)
class KnownFile:
    """A manifest file as first seen: path relative to the manifest, rows, digest of the ids."""

    name: str
    rows: int
    digest: str


@dataclass
class Counts:
    """Finished rows by outcome, and their tokens."""

    ok: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    visual_tokens: int = 0
    output_tokens: int = 0

    @property
    def rows(self) -> int:
        return self.ok + sum(self.errors.values())

    def add(self, other: "Counts") -> None:
        self.ok += other.ok
        self.errors = dict(Counter(self.errors) + Counter(other.errors))
        self.prompt_tokens += other.prompt_tokens
        self.visual_tokens += other.visual_tokens
        self.output_tokens += other.output_tokens


@dataclass
class LedgerState:
    """What the log says up to record number `sequence`.

    done: for each file a bitmap, row i at bit i % 8 of byte i // 8.
    tokens: of all commits. run: the run that may commit, that is, the one that started last.
    counts: of the whole output; run_counts: what `run` has finished.
    """

    header: Record | None = None
    sequence: int = 0
    run: str | None = None
    files: list[KnownFile] = field(default_factory=list)
    done: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)
    run_counts: Counts = field(default_factory=Counts)

    def number_of(self, name: str) -> int | None:
        """The number of the manifest file `name`, or None when it is not known."""
        return next((i for i, file in enumerate(self.files) if file.name == name), None)

    def apply(self, record: Record) -> None:
        """Takes in the next record of the log."""
        self.sequence += 1
        kind = record["kind"]
        if kind == "open":
            self.header = record
        elif kind == "start":
            self.run = record["run"]
            self.run_counts = Counts()
            for entry in record["files"]:
                file = KnownFile(entry["name"], entry["rows"], entry["digest"])
                self._know(entry["number"], file)
        elif kind == "commit":
            for commit in record["commits"]:
                self.tokens.add(commit["token"])
                counts = Counts(**commit["counts"])
                self.counts.add(counts)
                self.run_counts.add(counts)
                for number, text in commit["rows"].items():
                    self._mark(int(number), rows_of(text))
        elif kind != "end":
            raise ValueError(f"record {self.sequence} of the log is of an unknown kind: {kind!r}")

    def taken(self, rows: Rows) -> Rows:
        """Those of the rows that are finished."""
        found = {number: rows[number][self._is_done(number, rows[number])] for number in rows}
        return {number: indices for number, indices in found.items() if indices.size}

    def pending(self, number: int, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """For rows start to stop of a file: True where a row is not finished."""
        first = start // 8
        bits = np.unpackbits(self.done[number][first : -(-stop // 8)], bitorder="little")
        found: npt.NDArray[np.bool_] = bits[start - first * 8 : stop - first * 8] == 0
        return found

    def _know(self, number: int, file: KnownFile) -> None:
        size = -(-file.rows // 8)
        if number == len(self.files):
            self.files.append(file)
            self.done.append(np.zeros(size, np.uint8))
        else:  # the file has grown
            self.files[number] = file
            self.done[number] = np.pad(self.done[number], (0, size - self.done[number].size))

    def _is_done(self, number: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = (self.done[number][indices >> 3] >> (indices & 7)) & 1 == 1
        return found

    def _mark(self, number: int, indices: npt.NDArray[np.int64]) -> None:
        bits = np.left_shift(1, indices & 7).astype(np.uint8)
        np.bitwise_or.at(self.done[number], indices >> 3, bits)


def text_of(indices: npt.NDArray[np.int64]) -> str:
    """Ascending row indices as text: "0-63,70"."""
    if not indices.size:
        return ""
    breaks = np.flatnonzero(np.diff(indices) != 1)
    starts = indices[np.concatenate(([0], breaks + 1))]
    ends = indices[np.concatenate((breaks, [indices.size - 1]))]
    return ",".join(
        f"{start}-{end}" if end > start else f"{start}"
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    )


def rows_of(text: str) -> npt.NDArray[np.int64]:
    """The row indices that `text_of` wrote."""
    parts = [part.partition("-") for part in text.split(",") if part]
    spans = [np.arange(int(first), int(last or first) + 1) for first, _, last in parts]
    return np.concatenate(spans) if spans else np.empty(0, np.int64)
