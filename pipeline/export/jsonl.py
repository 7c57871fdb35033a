"""JSON Lines: one object for each row. Lists and structs stay what they are."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mediamill.pipeline.export.formats import ExportContext, RowFile
from mediamill.pipeline.export.values import rows_of, to_json


class JsonLines(RowFile):
    """One file of JSON lines."""

    def __init__(self, context: ExportContext, number: int, scratch: Path) -> None:
        super().__init__(f"part-{number:06}.jsonl", scratch / "rows")
        self._columns = list(context.columns)

    def add(self, table: pa.Table) -> None:
        for row in rows_of(table.select(self._columns)):
            self.write(f"{to_json(row)}\n".encode(errors="replace"))


def join(parts: Iterator[Path]) -> Iterator[bytes]:
    """Yields the content of one file with the rows of all parts."""
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
