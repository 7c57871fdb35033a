"""Turns manifest files into tables of the rows that are not finished yet, each with its ordinal.

One read task takes row groups with something to do, of one file or of several small ones, and
carries at most one bit for each of their rows. Groups and files without an unfinished row are not
read. Which rows are finished is handed in.

A row group is never split over tasks: each would have to decode all that lies before its rows. A
very large one is streamed instead, so that it needs no more memory than a small one.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from mediamill.pipeline.ledger.state import LedgerState
from mediamill.pipeline.manifest.manifest import Manifest, ManifestFile
from mediamill.pipeline.records import ROW_STRUCT, read_schema
from mediamill.pipeline.storage import file_version, storage
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import ManifestSchema

_TASK_ROWS = 16_384  # a task has at least so many rows to do, where they are there
_TASKS = 1000  # so many tasks at most, about: the driver and Ray keep each of them
_FILE_ROWS = 1024  # opening a file takes as long as so many rows, or more
_BATCH_ROWS = 1024
_MASK_ROWS = 1 << 20  # of one mask while tasks are planned; a multiple of 8
_ROW_BYTES = 400  # a guess, for Ray's planning only
_STREAMED_BYTES = 64 << 20  # of a row group, decoded; from here on it is not read at once
_BUFFER_BYTES = 4 << 20  # of each column of such a row group

Bits = npt.NDArray[np.uint8]


class ManifestChangedError(RuntimeError):
    """A file is not the one that the run was planned with. The message says which."""


class RowGroup(NamedTuple):
    """position: among the file's row groups. start: index of its first row in the file."""

    position: int
    start: int
    rows: int


@dataclass(frozen=True)
class RowGroupSlice:
    """Row groups of one file, each with a row to do.

    number: of the file in the ledger. file_rows: of all its row groups. pending: a bitmap for each
    group, of whole bytes, all of them compressed together; bit i set = the group's row i is to be
    done. Empty where that is so for every row.
    """

    url: str
    number: int
    stamp: str
    file_rows: int
    groups: tuple[RowGroup, ...]
    pending: bytes
    partitions: dict[str, Any]

    def masks(self) -> Iterator[tuple[RowGroup, Bits]]:
        """Each group with its bitmap."""
        bits = np.frombuffer(zlib.decompress(self.pending), np.uint8) if self.pending else None
        used = 0
        for group in self.groups:
            size = -(-group.rows // 8)
            if bits is None:
                yield group, np.full(size, 0xFF, np.uint8)
            else:
                yield group, bits[used : used + size]
            used += size


@dataclass(frozen=True)
class ReadSplit:
    """What one task reads. rows: how many it will find to do."""

    stretches: tuple[RowGroupSlice, ...]
    rows: int


class ManifestDatasource(Datasource):
    """Ray Data's view of the rows that are to be done."""

    def __init__(self, manifest: Manifest, state: LedgerState) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._schema = manifest.schema
        self._partitions = manifest.partitions
        self._pieces = pieces(manifest, state)

    @property
    def tasks(self) -> int:
        return len(self._pieces)

    def estimate_inmemory_data_size(self) -> int:
        return sum(piece.rows for piece in self._pieces) * _ROW_BYTES

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """One task for each piece, whatever parallelism is asked for: pieces follow row groups."""
        schema = read_schema(self._schema)
        return [
            ReadTask(
                _Reader(piece, self._schema, self._partitions),
                BlockMetadata(
                    num_rows=piece.rows,
                    size_bytes=piece.rows * _ROW_BYTES,
                    input_files=None,
                    exec_stats=None,
                ),
                schema=schema,
                per_task_row_limit=per_task_row_limit,
            )
            for piece in self._pieces
        ]


def pieces(manifest: Manifest, state: LedgerState) -> list[ReadSplit]:
    """What is to be read, in the manifest's order. The ledger knows every file of the manifest."""
    numbers = {known.name: number for number, known in enumerate(state.files)}
    files = [(file, numbers[file.name]) for file in manifest.files]
    left = {number: file.rows - _finished(state, number) for file, number in files}
    weight = sum(rows + _FILE_ROWS for rows in left.values() if rows)
    wanted = max(_TASK_ROWS, -(-weight // _TASKS))
    found: list[ReadSplit] = []
    stretches: list[RowGroupSlice] = []
    have = rows = 0
    for file, number in files:
        if not left[number]:
            continue
        groups: list[tuple[RowGroup, Bits]] = []
        have += _FILE_ROWS
        for group, bits, to_do in _groups(file, number, state):
            groups.append((group, bits))
            rows += to_do
            have += to_do
            if have >= wanted:
                found.append(ReadSplit((*stretches, _stretch(file, number, groups)), rows))
                stretches, groups, have, rows = [], [], 0, 0
        if groups:
            stretches.append(_stretch(file, number, groups))
    return [*found, ReadSplit(tuple(stretches), rows)] if stretches else found


def _finished(state: LedgerState, number: int) -> int:
    return int(np.bitwise_count(state.done[number]).sum(dtype=np.int64))


def _groups(
    file: ManifestFile, number: int, state: LedgerState
) -> Iterator[tuple[RowGroup, Bits, int]]:
    """The row groups with something to do, a bitmap of it, and how much it is."""
    start = 0
    for position, rows in enumerate(file.row_groups):
        stop = start + rows
        masks = [
            np.packbits(
                state.pending(number, first, min(first + _MASK_ROWS, stop)), bitorder="little"
            )
            for first in range(start, stop, _MASK_ROWS)
        ]
        bits = np.concatenate([*masks, np.empty(0, np.uint8)])
        if to_do := int(np.bitwise_count(bits).sum(dtype=np.int64)):
            yield RowGroup(position, start, rows), bits, to_do
        start = stop


def _stretch(
    file: ManifestFile, number: int, groups: Sequence[tuple[RowGroup, Bits]]
) -> RowGroupSlice:
    bits = np.concatenate([bits for _, bits in groups])
    whole = int(np.bitwise_count(bits).sum(dtype=np.int64)) == sum(g.rows for g, _ in groups)
    return RowGroupSlice(
        file.place.url,
        number,
        file.stamp,
        file.rows,
        tuple(group for group, _ in groups),
        b"" if whole else zlib.compress(bits.data, level=1),
        dict(file.partitions),
    )


@dataclass(frozen=True)
class _Reader:
    """What a read task runs, in a worker."""

    piece: ReadSplit
    schema: ManifestSchema
    partitions: pa.Schema
    __name__ = "read_manifest"  # Ray puts it into a warning

    def __call__(self) -> Iterable[pa.Table]:
        return read_piece(self.piece, self.schema, self.partitions)


def read_piece(
    piece: ReadSplit, manifest: ManifestSchema, partitions: pa.Schema
) -> Iterator[pa.Table]:
    """The unfinished rows of a piece, in order and in bounded tables of `read_schema`.

    Raises ManifestChangedError.
    """
    inside = [name for name in manifest.arrow.names if name not in partitions.names]
    for stretch in piece.stretches:
        with _opened(stretch) as parquet:
            for group, bits in stretch.masks():
                done = 0
                for batch in parquet.iter_batches(_BATCH_ROWS, [group.position], inside):
                    wanted = _set(bits, done, done + batch.num_rows)
                    if wanted.size:
                        table = pa.Table.from_batches([batch]).take(wanted)
                        for field in partitions:
                            value = pa.scalar(stretch.partitions[field.name], field.type)
                            table = table.append_column(field, pa.repeat(value, len(wanted)))
                        indices = wanted + (group.start + done)
                        yield _with_ordinals(manifest.normalise(table), stretch.number, indices)
                    done += batch.num_rows


def _set(bits: Bits, start: int, stop: int) -> npt.NDArray[np.int64]:
    """The bits that are set from start to stop, counted from start."""
    first = start // 8
    mask = np.unpackbits(bits[first : -(-stop // 8)], bitorder="little")
    return np.flatnonzero(mask[start - first * 8 : stop - first * 8])


@contextmanager
def _opened(stretch: RowGroupSlice) -> Iterator[pq.ParquetFile]:
    """The file, if it is still the one that was planned with."""
    place = storage.resolve(stretch.url)
    try:
        source = place.fs.open(place.path, "rb")
    except FileNotFoundError as error:
        raise _changed(stretch, "it is gone") from error
    with source, pq.ParquetFile(source) as parquet:
        footer = parquet.metadata
        if footer.num_rows != stretch.file_rows:
            raise _changed(stretch, f"found {footer.num_rows} rows, expected {stretch.file_rows}")
        sizes = [footer.row_group(at).num_rows for at in range(footer.num_row_groups)]
        if any(sizes[one.position : one.position + 1] != [one.rows] for one in stretch.groups):
            raise _changed(stretch, "its row groups are others")
        if not file_version.same_content(
            stretch.stamp, file_version.file_version(place, _details(source))
        ):
            raise _changed(stretch, "it was written again")
        groups = [footer.row_group(group.position) for group in stretch.groups]
        if max(group.total_byte_size for group in groups) < _STREAMED_BYTES:
            yield parquet
            return
    # Columns take turns in the file: a cache that reads ahead would throw most of it away.
    with (
        place.fs.open(place.path, "rb", cache_type="none") as source,
        pq.ParquetFile(source, metadata=footer, buffer_size=_BUFFER_BYTES) as parquet,
    ):
        yield parquet


def _details(source: Any) -> Any:
    """What an object store said of the file when it was opened, which spares asking again."""
    return getattr(source, "details", None)


def _changed(stretch: RowGroupSlice, how: str) -> ManifestChangedError:
    return ManifestChangedError(
        f"{storage.redact(stretch.url)}: the manifest's file has changed while the job ran: {how}: "
        "run the same job again, which checks it anew"
    )


def _with_ordinals(table: pa.Table, number: int, indices: npt.NDArray[np.int64]) -> pa.Table:
    ordinals = pa.StructArray.from_arrays(
        [pa.array(np.full(len(indices), number, np.int32)), pa.array(indices)],
        fields=list(ROW_STRUCT),
    )
    table = table.append_column(pa.field(c.ROW, ROW_STRUCT), ordinals)
    for name in (c.STATUS, c.ERROR_CODE, c.ERROR_MESSAGE):
        table = table.append_column(
            pa.field(name, pa.string()), pa.nulls(len(indices), pa.string())
        )
    return table
