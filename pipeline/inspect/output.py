"""Reads the rows of an output by column, file by file, also while a job writes them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.annotate.window_columns import WINDOWS_FOLDER
from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.ledger import hive_paths, ledger
from mediamill.pipeline.ledger.journal import readable_files
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.arrow_convert import take_rows
from mediamill.schemas.errors import JobError

_THREADS = 3
_AHEAD = 4  # row groups that are read ahead
_NO_TEXTS = pa.string()


@dataclass(frozen=True)
class Chunk:
    """Some columns of one row group: of the file with this number.

    first: the number of its first row in the file. partitions: the values of the file's folder.
    """

    file: int
    first: int
    table: pa.Table
    partitions: Mapping[str, str | None]


Position = tuple[int, int]  # number of a file, and of a row in it


class Output:
    """The finished rows of an output that are in files; of a job annotate those of its windows.

    root: the output's folder. place: that of its rows. files: by name; names: in this order.
    header: what the output is bound to; None without a log. working: the run that is at work now.
    finished: rows by the log, of which some may not be in files yet.
    """

    def __init__(self, output: str) -> None:
        """Raises JobError when there is no result."""
        self.root: Place = storage.resolve(output)
        root = self.root
        self.url = storage.redact(root.url)
        windows = root / WINDOWS_FOLDER
        state = ledger.load(root)
        self.annotates = state.header is None and ledger.load(windows).header is not None
        self.place: Place = windows if self.annotates else root
        state = ledger.load(windows) if self.annotates else state
        self.header: Mapping[str, Any] | None = state.header
        self.finished = state.counts.rows if state.header is not None else None
        self.working = lease.holder(self.place) if state.header is not None else None
        self.files: Mapping[str, Place] = readable_files(self.place)
        self.names = tuple(self.files)
        if not self.names:
            reason = "found no result of Mediamill, expected an output"
            if state.header is not None:
                reason = "found no finished row in a file yet"
            raise JobError(f"{self.url}: {reason}")

    @property
    def parts(self) -> Mapping[str, Any]:
        """The parts of the fingerprint: job, prompt and so on; empty without a log."""
        parts: Mapping[str, Any] = (self.header or {}).get("parts", {})
        return parts

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the first file, and of the partitions as texts."""
        place = self.files[self.names[0]]
        with place.fs.open(place.path, "rb") as opened:
            schema: pa.Schema = pq.read_schema(opened)
        for column in self.partition_columns:
            if column not in schema.names:
                schema = schema.append(pa.field(column, _NO_TEXTS))
        return schema

    @property
    def partition_columns(self) -> tuple[str, ...]:
        """The columns that folders are named by, outermost first."""
        return tuple(name for name, _ in hive_paths.pairs(_folder(self.names[0])))

    @staticmethod
    def partitions_of(name: str) -> dict[str, str | None]:
        """The partition values of the rows of a file, by its name."""
        return dict(hive_paths.pairs(_folder(name)))

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yields these columns of all rows, those that a file has, one row group at a time.

        A file that is gone meanwhile (a compaction replaced it) is left out.
        """
        yield from _ahead(self._threads_read(columns))

    def rows(self, positions: Iterable[Position], columns: Sequence[str]) -> dict[Position, Any]:
        """Returns the rows at these positions, as values by column, with the partitions."""
        by_file: dict[int, list[int]] = {}
        for file, row in positions:
            by_file.setdefault(file, []).append(row)

        def read(item: tuple[int, list[int]]) -> dict[Position, Any]:
            return self._rows(item[0], item[1], columns)

        rows: dict[Position, Any] = {}
        # Few at once: a row group is read whole, with its receipts.
        with ThreadPoolExecutor(_THREADS // 2) as threads:
            for some in threads.map(read, sorted(by_file.items())):
                rows |= some
        return rows

    def _threads_read(self, columns: Sequence[str]) -> Iterator[Any]:
        with ThreadPoolExecutor(_THREADS) as threads:
            for number, name in enumerate(self.names):
                for group in range(self._row_groups(number)):
                    yield threads.submit(self._chunk, number, name, group, columns)

    def _row_groups(self, number: int) -> int:
        # Most files have one row group: the footer is read with the first.
        return self._group_counts.get(number, 1)

    @cached_property
    def _group_counts(self) -> dict[int, int]:
        def count(number: int) -> int:
            place = self.files[self.names[number]]
            try:
                with place.fs.open(place.path, "rb") as opened:
                    return int(pq.read_metadata(opened).num_row_groups)
            except FileNotFoundError:
                return 0

        with ThreadPoolExecutor(4 * _THREADS) as threads:
            return dict(enumerate(threads.map(count, range(len(self.names)))))

    def _chunk(self, number: int, name: str, group: int, columns: Sequence[str]) -> Chunk | None:
        place = self.files[name]
        try:
            with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
                present = [column for column in columns if column in parquet.schema_arrow.names]
                first = sum(parquet.metadata.row_group(i).num_rows for i in range(group))
                table = parquet.read_row_group(group, columns=present, use_threads=False)
        except FileNotFoundError:
            return None
        return Chunk(number, first, table, self.partitions_of(name))

    def _rows(self, number: int, wanted: Sequence[int], columns: Sequence[str]) -> dict[Any, Any]:
        place = self.files[self.names[number]]
        rows: dict[Position, Any] = {}
        try:
            with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
                present = [column for column in columns if column in parquet.schema_arrow.names]
                start = 0
                for group in range(parquet.num_row_groups):
                    stop = start + parquet.metadata.row_group(group).num_rows
                    inside = [row for row in wanted if start <= row < stop]
                    if inside:
                        table = parquet.read_row_group(group, columns=present, use_threads=False)
                        taken = take_rows(table, np.array(inside, np.int64) - start)
                        for row, values in zip(inside, shown_rows(taken), strict=True):
                            rows[number, row] = {**values, **self.partitions_of(self.names[number])}
                    start = stop
        except FileNotFoundError:
            return {}
        return rows


def _ahead(futures: Iterator[Any]) -> Iterator[Chunk]:
    """Yields results in order; a few more are being read meanwhile."""
    waiting: list[Any] = []
    for future in futures:
        waiting.append(future)
        if len(waiting) > _AHEAD:
            chunk = waiting.pop(0).result()
            if chunk is not None:
                yield chunk
    for future in waiting:
        chunk = future.result()
        if chunk is not None:
            yield chunk


def shown_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Returns the rows of a table; values that Python does not have are replaced by texts."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows
    except (ValueError, OverflowError, pa.ArrowException):
        names, columns = table.schema.names, [map(shown_value, column) for column in table.columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def shown_value(value: pa.Scalar) -> Any:
    """Returns a value, or a text in place of one that Python does not have."""
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return bytes(error.object).decode(errors="replace")
    except (ValueError, OverflowError, pa.ArrowException):
        return f"(a {value.type} that cannot be shown)"


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
