"""Hugging Face's imagefolder: folders of pictures, each with a metadata.jsonl."""

from collections import Counter
from pathlib import Path

import pyarrow as pa

from mediamill.pipeline.export.formats import ExportContext
from mediamill.pipeline.export.parquet import media_columns
from mediamill.pipeline.export.values import file_key, rows_of, to_json
from mediamill.schemas import columns as c

FILE_NAME = "file_name"


class ImageFolder:
    """One folder of pictures."""

    def __init__(self, context: ExportContext, number: int, scratch: Path) -> None:
        self.rows, self.size = 0, 0
        self.left_out: Counter[str] = Counter()
        self._context, self._folder, self._scratch = context, f"{number:06}", scratch
        self._files: list[tuple[str, Path]] = []
        self._lines: list[str] = []

    def add(self, table: pa.Table) -> None:
        needed = {*self._context.columns, *media_columns(table.schema)}
        rows = rows_of(table.select([name for name in table.schema.names if name in needed]))
        for index, medium in self._context.reader.read_pictures(rows, self.left_out):
            row = rows[index]
            name = f"{file_key(row[c.ID])}.{medium.extension}"
            path = self._scratch / name
            path.write_bytes(medium.data)
            self._files.append((f"{self._folder}/{name}", path))
            values = {column: row[column] for column in self._context.columns}
            self._lines.append(to_json({FILE_NAME: name, **values}))
            self.rows, self.size = self.rows + 1, self.size + len(medium.data)

    def close(self) -> list[tuple[str, Path]]:
        if not self.rows:
            return []
        path = self._scratch / "metadata.jsonl"
        path.write_text("".join(f"{line}\n" for line in self._lines), "utf-8", errors="replace")
        return [*self._files, (f"{self._folder}/metadata.jsonl", path)]
