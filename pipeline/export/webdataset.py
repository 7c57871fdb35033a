"""WebDataset: tar files with the members KEY.jpg, KEY.txt and KEY.json of each row.

The key is made of the row's id: legal, without dots, and the same in every export.
"""

import io
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa

from mediamill.pipeline.export.formats import ExportContext
from mediamill.pipeline.export.media import Medium
from mediamill.pipeline.export.parquet import media_columns
from mediamill.pipeline.export.values import file_key, rows_of, to_json
from mediamill.schemas import columns as c


class TarShard:
    """One tar file."""

    def __init__(self, context: ExportContext, number: int, scratch: Path) -> None:
        self.rows, self.size = 0, 0
        self.left_out: Counter[str] = Counter()
        self._context, self._name, self._path = context, f"{number:06}.tar", scratch / "tar"
        self._tar = tarfile.TarFile(self._path, "w", format=tarfile.USTAR_FORMAT)

    def add(self, table: pa.Table) -> None:
        needed = {*self._context.columns, *media_columns(table.schema)}
        needed |= {self._context.text} & {*table.schema.names}
        rows = rows_of(table.select([name for name in table.schema.names if name in needed]))
        media = self._context.reader.read(rows) if self._context.media else [None] * len(rows)
        for row, medium in zip(rows, media, strict=True):
            if isinstance(medium, str):
                self.left_out[medium] += 1
                continue
            key = file_key(row[c.ID])
            if isinstance(medium, Medium):
                self._add(f"{key}.{medium.extension}", medium.data)
            if row.get(self._context.text) is not None:
                self._add(f"{key}.txt", str(row[self._context.text]).encode(errors="replace"))
            values = {name: row[name] for name in self._context.columns}
            self._add(f"{key}.json", to_json(values).encode(errors="replace"))
            self.rows += 1

    def close(self) -> list[tuple[str, Path]]:
        self._tar.close()
        return [(self._name, self._path)]

    def _add(self, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(name)  # its time is 0: the same rows give the same bytes
        entry.size, entry.mode = len(data), 0o644
        self._tar.addfile(entry, io.BytesIO(data))
        self.size += len(data) + 1024
