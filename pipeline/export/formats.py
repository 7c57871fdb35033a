"""What a format of export is, and what is shared by those that write files of rows."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from mediamill.pipeline.export.media import MediaReader
from mediamill.pipeline.storage.storage import Place


class Shard(Protocol):
    """A part of the export that is complete all at once."""

    @property
    def rows(self) -> int:
        """The number of rows that it holds."""

    @property
    def size(self) -> int:
        """The size of its files in bytes, about."""

    @property
    def left_out(self) -> Counter[str]:
        """The number of rows that it refused, by reason."""

    def add(self, table: pa.Table) -> None:
        """Adds rows."""

    def close(self) -> list[tuple[str, Path]]:
        """Returns the files, in the order in which they should appear, by name in the target."""


@dataclass(frozen=True)
class ExportContext:
    """What formats need of an export.

    schema: of the whole source. columns: that are exported. text: the column of the text.
    media: whether the media are exported, too.
    sidecar: the suffix of text files. target: of the export. roots: folders that relative names
    are relative to. exported: rows before the shard that is made.
    """

    schema: pa.Schema
    columns: tuple[str, ...]
    text: str
    media: bool
    sidecar: str
    target: Place
    roots: tuple[str, ...]
    overwrite: bool
    reader: MediaReader
    exported: int = 0


# Makes the next shard. number: from 0. scratch: a folder for its files.
MakeShard = Callable[[ExportContext, int, Path], Shard]
# Makes one file of the files of all shards, read in order.
Join = Callable[[Iterator[Path]], Iterator[bytes]]


class RowFile:
    """A shard that is one file of encoded rows."""

    def __init__(self, name: str, path: Path, head: bytes = b"") -> None:
        self.rows = 0
        self.left_out: Counter[str] = Counter()
        self._name, self._path = name, path
        self._file = path.open("wb")
        self._file.write(head)

    @property
    def size(self) -> int:
        return self._file.tell()

    def write(self, data: bytes) -> None:
        """Adds an encoded row."""
        self._file.write(data)
        self.rows += 1

    def close(self) -> list[tuple[str, Path]]:
        self._file.close()
        return [(self._name, self._path)]
