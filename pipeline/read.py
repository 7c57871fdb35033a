"""Turns manifest files into tables of the rows that are not finished yet, each with its ordinal.

One read task takes whole row groups of one file and carries one bit for each of its rows. Files
without an unfinished row are not opened. Which rows are finished is handed in.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline import storage
from pipeline.ledger_state import LedgerState
from pipeline.manifest import Manifest, ManifestFile
from pipeline.records import ROW_STRUCT, read_schema
from schemas import columns as c
from schemas.manifest import ManifestSchema

_TASK_ROWS = 16_384  # a task takes at least so many rows, where the file has them
_BATCH_ROWS = 1024
_ROW_BYTES = 400  # a guess, for Ray's planning only


@dataclass(frozen=True)
class Piece:
    """Row groups of one file with a row to do.

    number: of the file in the ledger. start: index of the first row. pending: bit i set = row
    start + i is to be done.
    """

    url: str
    number: int
    row_groups: tuple[int, ...]
    start: int
    rows: int
    pending: bytes
    partitions: dict[str, Any]

    def mask(self) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(self.pending, np.uint8)
        return np.unpackbits(bits, count=self.rows, bitorder="little").astype(bool)


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
                    num_rows=int(piece.mask().sum()),
                    size_bytes=piece.rows * _ROW_BYTES,
                    input_files=None,
                    exec_stats=None,
                ),
                schema=schema,
                per_task_row_limit=per_task_row_limit,
            )
            for piece in self._pieces
        ]


def pieces(manifest: Manifest, state: LedgerState) -> list[Piece]:
    """What is to be read. Every file of the manifest is known to the ledger."""
    numbers = {known.name: number for number, known in enumerate(state.files)}
    found = []
    for file in manifest.files:
        number = numbers[file.name]
        start = 0
        for groups in _runs(file.row_groups):
            rows = sum(file.row_groups[group] for group in groups)
            mask = state.pending(number, start, start + rows)
            if mask.any():
                bits = np.packbits(mask, bitorder="little").tobytes()
                found.append(_piece(file, number, groups, start, rows, bits))
            start += rows
    return found


def _piece(
    file: ManifestFile, number: int, groups: tuple[int, ...], start: int, rows: int, bits: bytes
) -> Piece:
    return Piece(file.place.url, number, groups, start, rows, bits, dict(file.partitions))


def _runs(row_groups: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Neighbouring row groups, taken together until they have enough rows for a task."""
    run: list[int] = []
    rows = 0
    for group, size in enumerate(row_groups):
        run.append(group)
        rows += size
        if rows >= _TASK_ROWS:
            yield tuple(run)
            run, rows = [], 0
    if run:
        yield tuple(run)


@dataclass(frozen=True)
class _Reader:
    """What a read task runs, in a worker."""

    piece: Piece
    schema: ManifestSchema
    partitions: pa.Schema
    __name__ = "read_manifest"  # Ray puts it into a warning

    def __call__(self) -> Iterable[pa.Table]:
        return read_piece(self.piece, self.schema, self.partitions)


def read_piece(piece: Piece, manifest: ManifestSchema, partitions: pa.Schema) -> Iterator[pa.Table]:
    """The unfinished rows of a piece, in order and in bounded tables of `read_schema`."""
    place = storage.resolve(piece.url)
    mask, done = piece.mask(), 0
    inside = [name for name in manifest.arrow.names if name not in partitions.names]
    with place.fs.open(place.path, "rb") as source, pq.ParquetFile(source) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, list(piece.row_groups), inside):
            wanted = np.flatnonzero(mask[done : done + batch.num_rows])
            if wanted.size:
                table = pa.Table.from_batches([batch]).take(wanted)
                for field in partitions:
                    value = pa.scalar(piece.partitions[field.name], field.type)
                    table = table.append_column(field, pa.repeat(value, len(wanted)))
                indices = wanted.astype(np.int64) + piece.start + done
                yield _with_ordinals(manifest.normalise(table), piece.number, indices)
            done += batch.num_rows


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
