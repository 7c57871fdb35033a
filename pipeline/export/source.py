"""Reads the finished rows of an output for an export: a stream that can begin anywhere.

Rows are named by the file that they were first published in, and stay so when the file is
compacted: an export that goes on after a compaction exports nothing twice.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger import hive_paths, ledger
from mediamill.pipeline.ledger.bitmaps import rows_of
from mediamill.pipeline.ledger.compaction import FileInfo, file_info
from mediamill.pipeline.ledger.journal import readable_files
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.arrow_convert import take_rows
from mediamill.schemas.errors import JobError

_BATCH_ROWS = 512
_THREADS = 16
_TRIES = 8  # to read files that a compaction replaces meanwhile


@dataclass(frozen=True)
class Unit:
    """The rows of one file as it was published. name: of that file, with its folder.

    place: the file that has them now. start: of them in that file.
    positions: of the rows that a retry has replaced, from `start` on, in a unit of only these; its
    name has the retry's label. None in a unit of all rows.
    labels: the names of the units of replaced rows, which a unit of all rows includes.
    """

    name: str
    rows: int
    place: Place
    start: int
    positions: npt.NDArray[np.int64] | None = None
    labels: tuple[str, ...] = ()


class Source:
    """The rows of one table of an output. schema: with the columns of the partitions."""

    def __init__(self, output: str, table: str | None = None) -> None:
        """table: a folder of the output, such as `videos` of a job annotate.

        Raises JobError when there is no result, or one without finished rows.
        """
        root = storage.resolve(output)
        shown = storage.redact(root.url)
        if table is None and ledger.load(root).header is None:
            if ledger.load(root / "windows").header is not None:
                table = "windows"
        elif table is not None and "/" in table.strip("/"):
            raise JobError(f"--table: found '{table}', expected the name of a folder in {shown}")
        self.place = root / table if table else root
        self.header = ledger.load(self.place).header
        if self.header is None and not readable_files(self.place):
            where = storage.redact(self.place.url)
            raise JobError(f"{where}: found no result of Mediamill, expected an output")
        self._partitions = hive_paths.column_types(self.header or {})
        self.schema: pa.Schema | None = None

    def units(self) -> list[Unit]:
        """Returns all rows that are visible now, by unit, sorted by name. Sets `schema`."""
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._units()
            except FileNotFoundError:
                if not tries_left:
                    raise
        raise AssertionError

    def read(self, unit: Unit, skip: int) -> Iterator[pa.Table]:
        """Yields the rows of a unit after the first `skip`, in small tables of `schema`."""
        tries = _TRIES
        while skip < unit.rows:
            try:
                for table in self._read_unit(unit, skip):
                    skip += table.num_rows
                    yield table
                return
            except FileNotFoundError:
                tries -= 1
                found = {one.name: one for one in self.units()}
                if not tries or unit.name not in found:
                    raise
                unit = found[unit.name]

    def _units(self) -> list[Unit]:
        files = readable_files(self.place)
        units: list[tuple[str, Unit]] = []  # with the name of the file that has it now
        replaced: set[str] = set()
        with ThreadPoolExecutor(_THREADS) as threads:
            # One after the other: a schema for each of many files would fill the memory.
            for info in threads.map(lambda name: file_info(files[name], name), files):
                if self.schema is None:
                    self.schema = self._schema(info)
                start = 0
                base = info.sources or ((info.name.rpartition("/")[2], info.rows),)
                for name, rows in base:
                    unit = Unit(_beside(info.name, name), rows, files[info.name], start)
                    again = list(_replaced(unit, info))
                    unit = replace(unit, labels=tuple(other.name for other in again))
                    units += [(info.name, other) for other in (unit, *again)]
                    start += rows
                replaced.update(_beside(info.name, source) for source, _ in info.sources)
        # Without files that were published again by tasks that were thought to be dead.
        whole = (unit for name, unit in units if name not in replaced)
        return sorted(whole, key=lambda unit: unit.name)

    def _schema(self, info: FileInfo) -> pa.Schema:
        schema: pa.Schema = info.schema
        for name in dict(hive_paths.pairs(info.name.rpartition("/")[0])):
            if name not in schema.names:
                schema = schema.append(pa.field(name, self._partitions.get(name, pa.string())))
        return schema

    def _read_unit(self, unit: Unit, skip: int) -> Iterator[pa.Table]:
        if unit.positions is None:
            yield from self._read(unit, skip)
            return
        positions = unit.positions[skip:]
        first = int(positions[0])
        whole = replace(unit, rows=int(positions[-1]) + 1, positions=None)
        for table in self._read(whole, first):
            inside = positions[(positions >= first) & (positions < first + table.num_rows)]
            if inside.size:
                yield take_rows(table, inside - first)
            first += table.num_rows

    def _read(self, unit: Unit, skip: int) -> Iterator[pa.Table]:
        assert self.schema is not None
        values = dict(hive_paths.pairs(unit.name.rpartition("/")[0]))
        first, last = unit.start + skip, unit.start + unit.rows
        position = 0
        place = unit.place
        with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
            groups: list[int] = []
            for number in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(number).num_rows
                if position < last and position + rows > first:
                    if not groups:
                        begin = position
                    groups.append(number)
                position += rows
            if not groups:
                return
            position = begin
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups):
                low, high = max(first - position, 0), min(last - position, batch.num_rows)
                position += batch.num_rows
                if low < high:
                    yield self._complete(
                        pa.Table.from_batches([batch.slice(low, high - low)]), values
                    )

    def _complete(self, table: pa.Table, values: dict[str, str | None]) -> pa.Table:
        assert self.schema is not None
        columns = []
        for field in self.schema:
            if field.name in table.column_names:
                columns.append(table[field.name].cast(field.type))
            else:
                value = pa.scalar(values.get(field.name), pa.string()).cast(field.type)
                columns.append(pa.repeat(value, table.num_rows))
        return pa.table(columns, schema=self.schema)


def _replaced(whole: Unit, info: FileInfo) -> Iterator[Unit]:
    """Yields the units of the rows that retries have replaced in a unit of all rows."""
    for label, text in info.replaced:
        positions = rows_of(text) - whole.start
        positions = positions[(positions >= 0) & (positions < whole.rows)]
        if positions.size:
            name = f"{whole.name}@{label}"
            yield replace(whole, name=name, rows=positions.size, positions=positions)


def choose_columns(schema: pa.Schema, names: Sequence[str]) -> Sequence[str]:
    """Returns the names. Raises JobError for one that the schema has not."""
    from mediamill.schemas.nearest import nearest

    for name in names:
        if name not in schema.names:
            guess = nearest(name, schema.names)
            hint = f"did you mean '{guess}'?" if guess else f"expected some of {schema.names}"
            raise JobError(f"--columns: unknown column '{name}', {hint}"[:1500])
    return names


def _beside(path: str, name: str) -> str:
    return f"{path.rpartition('/')[0]}/{name}".lstrip("/")
