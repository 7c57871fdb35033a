"""Reads the unfinished rows of a manifest, each with its ordinal, as a Ray Data source.

A read split is the work of one read task: row groups of one file or of several small files, with a
bitmap of their unfinished rows. A row group without an unfinished row is not read. None is divided
among tasks, since each task would decode all rows before its own; a very large one is streamed,
so that it needs no more memory than a small one.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from mediamill.model.urls import safe_text
from mediamill.pipeline.faults import PermanentError
from mediamill.pipeline.ladder.attempts import Attempts, Ordinal, with_attempts_by_row
from mediamill.pipeline.ledger.state import LedgerState
from mediamill.pipeline.manifest.batches import is_content_error, read_batches
from mediamill.pipeline.manifest.manifest import Manifest, ManifestFile
from mediamill.pipeline.manifest.read_rows import manifest_columns, read_rows
from mediamill.pipeline.manifest.selection import Selection
from mediamill.pipeline.records import read_schema
from mediamill.pipeline.storage import file_version, storage
from mediamill.schemas.manifest import ManifestSchema

_MIN_SPLIT_ROWS = 16_384  # of unfinished rows in a split, if there are as many
_MAX_SPLITS = 1000  # roughly: the driver and Ray hold each task in memory
_FILE_OPEN_ROWS = 1024  # opening a file takes at least as long as reading so many rows
_BATCH_ROWS = 1024
_BATCH_BYTES = 32 << 20  # of a table; rows may hold whole pictures
_MASK_ROWS = 1 << 20  # of one mask while splits are planned; a multiple of 8
_ROW_BYTES = 400  # an estimate, for Ray's planning only
_STREAMED_BYTES = 64 << 20  # decoded; larger row groups are streamed
_BUFFER_BYTES = 4 << 20  # of each column of a streamed row group

Bitmap = npt.NDArray[np.uint8]


class ManifestChangedError(RuntimeError):
    """A file has changed since the run was planned. The message names it."""


class RowGroup(NamedTuple):
    """position: among the file's row groups. start: index of its first row in the file."""

    position: int
    start: int
    rows: int


@dataclass(frozen=True)
class RowGroupSlice:
    """Row groups of one file, each with at least one unfinished row.

    number: of the file in the ledger.
    version: see file_version.py.
    file_rows: of the whole file.
    pending: a bitmap of each group, padded to whole bytes, concatenated and compressed with zlib.
        Bit i is set if row i of the group is unfinished. Empty if all rows are.
    partitions: values of the columns that the file's hive path gives.
    """

    url: str
    number: int
    version: str
    file_rows: int
    groups: tuple[RowGroup, ...]
    pending: bytes
    partitions: dict[str, Any]

    def bitmaps(self) -> Iterator[tuple[RowGroup, Bitmap]]:
        """Yields each group with the bitmap of its unfinished rows."""
        sizes = [-(-group.rows // 8) for group in self.groups]
        bits = zlib.decompress(self.pending) if self.pending else b"\xff" * sum(sizes)
        bitmaps = np.split(np.frombuffer(bits, np.uint8), np.cumsum(sizes)[:-1])
        yield from zip(self.groups, bitmaps, strict=True)


@dataclass(frozen=True)
class ReadSplit:
    """What one task reads. rows: the number of unfinished rows."""

    slices: tuple[RowGroupSlice, ...]
    rows: int


class ManifestDatasource(Datasource):
    """A Ray Data source of the unfinished rows. selection: None for all of them."""

    def __init__(
        self,
        manifest: Manifest,
        state: LedgerState,
        selection: Selection | None = None,
        attempts: Mapping[Ordinal, Attempts] | None = None,
    ) -> None:
        """attempts: of rows that the run has tried before."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._schema = manifest.schema
        self._partitions = manifest.partitions
        self._splits = plan_splits(manifest, state, selection)
        self._attempts = attempts or {}

    @property
    def tasks(self) -> int:
        """The number of read tasks."""
        return len(self._splits)

    def estimate_inmemory_data_size(self) -> int:
        return sum(split.rows for split in self._splits) * _ROW_BYTES

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """Returns one task a split. Ignores `parallelism`, because splits follow row groups."""
        schema = read_schema(self._schema)
        return [
            ReadTask(
                _Reader(split, self._schema, self._partitions, self._attempts_of(split)),
                BlockMetadata(
                    num_rows=split.rows,
                    size_bytes=split.rows * _ROW_BYTES,
                    input_files=None,
                    exec_stats=None,
                ),
                schema=schema,
                per_task_row_limit=per_task_row_limit,
            )
            for split in self._splits
        ]

    def _attempts_of(self, split: ReadSplit) -> dict[Ordinal, Attempts]:
        ranges = [
            (part.number, part.groups[0].start, part.groups[-1].start + part.groups[-1].rows)
            for part in split.slices
        ]
        return {
            (file, index): attempts
            for (file, index), attempts in self._attempts.items()
            if any(file == number and first <= index < stop for number, first, stop in ranges)
        }


def plan_splits(
    manifest: Manifest, state: LedgerState, selection: Selection | None = None
) -> list[ReadSplit]:
    """Returns the splits of all unfinished rows of the selection, in the order of the manifest.

    The ledger has to know every file of the manifest.
    """
    selection = selection or Selection(None, manifest.rows, state.rows_left(manifest.rows))
    numbers = {file.name: number for number, file in enumerate(state.files)}
    files = [(file, numbers[file.name]) for file in manifest.files]
    unfinished = {number: selection.unfinished(state, number, file.rows) for file, number in files}
    total_cost = sum(rows + _FILE_OPEN_ROWS for rows in unfinished.values() if rows)
    target_cost = max(_MIN_SPLIT_ROWS, -(-total_cost // _MAX_SPLITS))
    splits: list[ReadSplit] = []
    slices: list[RowGroupSlice] = []
    cost = rows = 0
    for file, number in files:
        if not unfinished[number]:
            continue
        groups: list[tuple[RowGroup, Bitmap]] = []
        cost += _FILE_OPEN_ROWS
        for group, bitmap, group_rows in _pending_groups(file, number, state, selection):
            groups.append((group, bitmap))
            rows += group_rows
            cost += group_rows
            if cost >= target_cost:
                splits.append(ReadSplit((*slices, _slice(file, number, groups)), rows))
                slices, groups, cost, rows = [], [], 0, 0
        if groups:
            slices.append(_slice(file, number, groups))
    return [*splits, ReadSplit(tuple(slices), rows)] if slices else splits


def _count_bits(bitmap: Bitmap) -> int:
    return int(np.bitwise_count(bitmap).sum(dtype=np.int64))


def _pending_groups(
    file: ManifestFile, number: int, state: LedgerState, selection: Selection
) -> Iterator[tuple[RowGroup, Bitmap, int]]:
    """Yields the row groups with unfinished rows, with a bitmap and the number of these rows."""
    start = 0
    for position, rows in enumerate(file.row_groups):
        stop = start + rows
        masks = [
            np.packbits(
                selection.pending(state, number, first, min(first + _MASK_ROWS, stop)),
                bitorder="little",
            )
            for first in range(start, stop, _MASK_ROWS)
        ]
        bitmap = np.concatenate([*masks, np.empty(0, np.uint8)])
        if pending := _count_bits(bitmap):
            yield RowGroup(position, start, rows), bitmap, pending
        start = stop


def _slice(
    file: ManifestFile, number: int, groups: Sequence[tuple[RowGroup, Bitmap]]
) -> RowGroupSlice:
    bitmaps = np.concatenate([bitmap for _, bitmap in groups])
    all_pending = _count_bits(bitmaps) == sum(group.rows for group, _ in groups)
    return RowGroupSlice(
        file.place.url,
        number,
        file.version,
        file.rows,
        tuple(group for group, _ in groups),
        b"" if all_pending else zlib.compress(bitmaps.data, level=1),
        dict(file.partitions),
    )


@dataclass(frozen=True)
class _Reader:
    """The function of a read task, which runs in a Ray worker."""

    split: ReadSplit
    schema: ManifestSchema
    partitions: pa.Schema
    attempts: Mapping[Ordinal, Attempts]
    __name__ = "read_manifest"  # Ray's warnings show it

    def __call__(self) -> Iterable[pa.Table]:
        for table in read_split(self.split, self.schema, self.partitions):
            yield with_attempts_by_row(table, self.attempts)


def read_split(
    split: ReadSplit, manifest: ManifestSchema, partitions: pa.Schema
) -> Iterator[pa.Table]:
    """Yields the unfinished rows of a split, in order, in tables of `read_schema`.

    A table has at most _BATCH_ROWS rows; those with values that no stage can read are error rows.
    Raises ManifestChangedError, and JobError for a column that cannot be read; PermanentError for
    a file that cannot be opened.
    """
    known = manifest_columns(manifest)
    for group_slice in split.slices:
        place = storage.resolve(group_slice.url)
        with _errors_name_file(group_slice), _open_checked(group_slice) as parquet:
            columns = [name for name in parquet.schema_arrow.names if name in known]
            paths = [field for field in partitions if field.name not in columns]
            for group, bitmap in group_slice.bitmaps():
                start = 0
                rows = _batch_rows(parquet.metadata.row_group(group.position))
                for batch in read_batches(parquet, place, rows, columns, [group.position]):
                    pending = _set_bits(bitmap, start, start + batch.num_rows)
                    if pending.size:
                        # A name with dots may also have read parts of other columns.
                        table = pa.Table.from_batches([batch]).select(columns)
                        for field in paths:
                            value = pa.scalar(group_slice.partitions[field.name], field.type)
                            table = table.append_column(field, pa.repeat(value, len(table)))
                        numbers = (group_slice.number, group.start + start)
                        yield read_rows(table, pending, numbers, manifest)
                    start += batch.num_rows


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """Returns how many rows of a row group are read at once: fewer where they are large."""
    row_bytes: int = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))


def _set_bits(bitmap: Bitmap, start: int, stop: int) -> npt.NDArray[np.int64]:
    """The positions of the set bits in [start, stop), relative to start."""
    first = start // 8
    mask = np.unpackbits(bitmap[first : -(-stop // 8)], bitorder="little")
    return np.flatnonzero(mask[start - first * 8 : stop - first * 8])


@contextmanager
def _errors_name_file(group_slice: RowGroupSlice) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if not is_content_error(error):
            raise
        reason = safe_text(str(error).strip().partition("\n")[0])
    else:
        return
    # Not chained: a message of Ray's would name the first error of a chain.
    raise PermanentError(
        f"{storage.redact(group_slice.url)}: the manifest's file cannot be read: {reason}"
    )


@contextmanager
def _open_checked(group_slice: RowGroupSlice) -> Iterator[pq.ParquetFile]:
    """Opens the file. Raises ManifestChangedError if it is not the one of the plan."""
    place = storage.resolve(group_slice.url)
    try:
        source = place.fs.open(place.path, "rb")
    except FileNotFoundError:
        # Not chained: a message of Ray's would name the first error of a chain.
        raise _changed(group_slice, "it no longer exists") from None
    # Only files whose writer was asked for checksums have them.
    with source, pq.ParquetFile(source, page_checksum_verification=True) as parquet:
        footer = parquet.metadata
        if footer.num_rows != group_slice.file_rows:
            found = f"found {footer.num_rows} rows, expected {group_slice.file_rows}"
            raise _changed(group_slice, found)
        sizes = [footer.row_group(at).num_rows for at in range(footer.num_row_groups)]
        groups = group_slice.groups
        if any(sizes[group.position : group.position + 1] != [group.rows] for group in groups):
            raise _changed(group_slice, "its row groups have changed")
        # The details that an object store sent when the file was opened save a request.
        version = file_version.file_version(place, getattr(source, "details", None))
        if not file_version.same_content(group_slice.version, version):
            raise _changed(group_slice, "it was overwritten")
        largest = max(footer.row_group(group.position).total_byte_size for group in groups)
        if largest < _STREAMED_BYTES:
            yield parquet
            return
    # Reads alternate between the columns: a read-ahead cache would discard most of its bytes.
    with (
        place.fs.open(place.path, "rb", cache_type="none") as source,
        pq.ParquetFile(
            source,
            metadata=footer,
            buffer_size=_BUFFER_BYTES,
            page_checksum_verification=True,
        ) as parquet,
    ):
        yield parquet


def _changed(group_slice: RowGroupSlice, how: str) -> ManifestChangedError:
    return ManifestChangedError(
        f"{storage.redact(group_slice.url)}: the manifest's file has changed while the job ran: "
        f"{how}"
    )
