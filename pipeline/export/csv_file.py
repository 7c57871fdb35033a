"""CSV with a header, in UTF-8, with the quotes of RFC 4180. Lists and structs are JSON."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mediamill.pipeline.export.formats import ExportContext, RowFile
from mediamill.pipeline.export.values import rows_of, to_csv_field


class CsvFile(RowFile):
    """One file of CSV lines."""

    def __init__(self, context: ExportContext, number: int, scratch: Path) -> None:
        self._columns = list(context.columns)
        head = ",".join(to_csv_field(name) for name in self._columns)
        super().__init__(f"part-{number:06}.csv", scratch / "rows", f"{head}\n".encode())

    def add(self, table: pa.Table) -> None:
        alone = len(self._columns) == 1
        for row in rows_of(table.select(self._columns)):
            fields = (to_csv_field(row[name], alone) for name in self._columns)
            self.write(f"{','.join(fields)}\n".encode(errors="replace"))


def join(parts: Iterator[Path]) -> Iterator[bytes]:
    """Yields the content of one file with the rows of all parts, and one header."""
    for number, part in enumerate(parts):
        with part.open("rb") as file:
            if number:
                _skip_line(file.readline)
            while chunk := file.read(1 << 20):
                yield chunk


def _skip_line(readline: object) -> None:
    """Skips the header, which has several lines if the name of a column has."""
    assert callable(readline)
    quotes = 0
    while True:
        line = readline()
        quotes += line.count(b'"')
        if not line or quotes % 2 == 0:
            return
