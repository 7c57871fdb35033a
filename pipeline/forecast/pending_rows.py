"""Draws rows of a manifest at random among those that are not finished."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.state import Bitmap
from mediamill.pipeline.manifest.batches import read_batches
from mediamill.pipeline.manifest.manifest import Manifest, ManifestFile
from mediamill.pipeline.manifest.read_rows import manifest_columns, read_rows
from mediamill.pipeline.plan import Plan
from mediamill.pipeline.records import read_schema
from mediamill.schemas.manifest import ManifestSchema

_BATCH_ROWS = 4096
_MAX_GROUPS = 48  # row groups that are read, if there are many
_MAX_BYTES = 512 << 20  # of these, decoded
_CHUNK = 1 << 20  # bits that are unpacked at once; a multiple of 8

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Group:
    """A row group. position: among those of its file. pending: rows that are not finished."""

    file: int
    position: int
    start: int
    rows: int
    pending: int


@dataclass(frozen=True)
class Drawn:
    """Rows in manifest order, as tables of `read_schema`.

    clusters: the row group of each row, if not all row groups were drawn from; else None.
    """

    table: pa.Table
    clusters: Indices | None


class PendingRows:
    """The rows of a manifest that an output lacks."""

    def __init__(self, manifest: Manifest, done: Mapping[str, Bitmap]) -> None:
        """done: by name of the file, which rows are finished."""
        self._manifest, self._done = manifest, done
        self._groups = list(self._all_groups())
        self.total = sum(group.pending for group in self._groups)

    @classmethod
    def of(cls, plan: Plan) -> "PendingRows":
        """Returns those of a checked job."""
        return cls(plan.manifest, finished_bits(plan))

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        """Returns `count` random rows, or all if there are fewer; each with the same chance.

        Of a manifest with many or large row groups only some are read, chosen at random.
        """
        groups, times = self._choose_groups(rng)
        clustered = times is not None
        pending = np.array([group.pending for group in groups])
        if times is not None:  # drawn by their size, so that equal numbers give equal chances
            wanted = np.minimum(pending, -(-count // int(times.sum())) * times)
        else:
            wanted = rng.multivariate_hypergeometric(pending, min(count, int(pending.sum())))
        tables: list[pa.Table] = []
        clusters: list[int] = []
        for number, (group, size) in enumerate(zip(groups, wanted.tolist(), strict=True)):
            if size:
                places = self._pending_in(group)
                chosen = np.sort(rng.choice(places, size, replace=False))
                tables += self._read(group, chosen)
                clusters += [number] * size
        table = pa.concat_tables([empty_table(self._manifest.schema), *tables])
        return Drawn(table, np.array(clusters, np.int64) if clustered else None)

    def _choose_groups(self, rng: np.random.Generator) -> tuple[Sequence[_Group], Indices | None]:
        """Returns row groups, and how often each was drawn; None if these are all."""
        groups = [group for group in self._groups if group.pending]
        most = _MAX_GROUPS
        if groups:
            size = max(1, self._group_bytes(groups[int(rng.integers(len(groups)))]))
            most = max(2, min(_MAX_GROUPS, _MAX_BYTES // size))
        if len(groups) <= most:
            return groups, None
        shares = np.cumsum([group.pending for group in groups]) / self.total
        points = (np.arange(most) + rng.random()) / most  # systematic: spread over the manifest
        places = np.searchsorted(shares, points, side="right")
        numbers, times = np.unique(places, return_counts=True)
        return [groups[int(number)] for number in numbers], times

    def row_bytes(self, rng: np.random.Generator) -> float:
        """Returns about how many bytes a row has, decoded."""
        groups = [group for group in self._groups if group.pending]
        if not groups:
            return 1.0
        group = groups[int(rng.integers(len(groups)))]
        return max(1.0, self._group_bytes(group) / group.rows)

    def _group_bytes(self, group: _Group) -> int:
        place = self._manifest.files[group.file].place
        with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
            size: int = parquet.metadata.row_group(group.position).total_byte_size
            return size

    def _all_groups(self) -> Iterator[_Group]:
        for number, file in enumerate(self._manifest.files):
            start = 0
            for position, rows in enumerate(file.row_groups):
                bits = self._done.get(file.name)
                pending = rows if bits is None else rows - _count(bits, start, start + rows)
                yield _Group(number, position, start, rows, pending)
                start += rows

    def _pending_in(self, group: _Group) -> Indices:
        """The positions in the group of its rows that are not finished."""
        bits = self._done.get(self._manifest.files[group.file].name)
        if bits is None:
            return np.arange(group.rows)
        return np.flatnonzero(~_unpacked(bits, group.start, group.start + group.rows))

    def _read(self, group: _Group, chosen: Indices) -> Iterator[pa.Table]:
        manifest, file = self._manifest, self._manifest.files[group.file]
        with file.place.fs.open(file.place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
            known = manifest_columns(manifest.schema)
            columns = [name for name in parquet.schema_arrow.names if name in known]
            paths = [field for field in manifest.partitions if field.name not in columns]
            rows = _batch_rows(parquet.metadata.row_group(group.position))
            start = 0
            for batch in read_batches(parquet, file.place, rows, columns, [group.position]):
                low, high = np.searchsorted(chosen, (start, start + batch.num_rows))
                if low < high:
                    table = pa.Table.from_batches([batch]).select(columns)
                    for field in paths:
                        value = pa.scalar(file.partitions[field.name], field.type)
                        table = table.append_column(field, pa.repeat(value, len(table)))
                    numbers = (group.file, group.start + start)
                    # Copied, so that the batch's memory is free again.
                    yield read_rows(table, chosen[low:high] - start, numbers, manifest.schema)
                start += batch.num_rows
                if start > chosen[-1]:
                    return


def empty_table(manifest: ManifestSchema) -> pa.Table:
    """Returns a table of `read_schema` without rows."""
    return read_schema(manifest).empty_table()


def finished_bits(plan: Plan) -> dict[str, Bitmap]:
    """Returns, by name of the manifest's files, which rows are finished in the output."""
    state, moved = plan.state, plan.resharding
    numbers = {
        file.name: number
        for number, file in enumerate(state.files)
        if file.name and number not in moved.retired
    }
    numbers |= moved.renamed
    bits: dict[str, Bitmap] = {}
    for file in plan.manifest.files:
        own = bits_of(file, state.done[numbers[file.name]] if file.name in numbers else None)
        other = bits_of(file, moved.finished.get(file.name))
        if own.any() or other.any():
            bits[file.name] = own | other
    return bits


def bits_of(file: ManifestFile, bits: Bitmap | None) -> Bitmap:
    """Returns the bitmap with a bit for each row of the file, which may have grown."""
    size = -(-file.rows // 8)
    known = np.zeros(0, np.uint8) if bits is None else bits[:size]
    return np.pad(known, (0, size - known.size))


def _unpacked(bits: Bitmap, start: int, stop: int) -> npt.NDArray[np.bool_]:
    first = start // 8
    whole = np.unpackbits(bits[first : -(-stop // 8)], bitorder="little")
    chosen: npt.NDArray[np.bool_] = whole[start - first * 8 : stop - first * 8] == 1
    return chosen


def _count(bits: Bitmap, start: int, stop: int) -> int:
    return sum(
        int(_unpacked(bits, at, min(at + _CHUNK, stop)).sum()) for at in range(start, stop, _CHUNK)
    )


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    row_bytes: int = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(_BATCH_ROWS, (32 << 20) // max(1, row_bytes)))
