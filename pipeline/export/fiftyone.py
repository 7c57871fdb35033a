"""FiftyOne: its type FiftyOneImageClassificationDataset, pictures and one labels.json.

labels.json is {"classes": null, "labels": {KEY: {"label": text, "attributes": {...}}}}, and the
picture of a key is data/KEY.EXTENSION. `fo.Dataset.from_dir(TARGET,
dataset_type=fo.types.FiftyOneImageClassificationDataset)` reads it.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mediamill.pipeline.export.formats import ExportContext
from mediamill.pipeline.export.parquet import media_columns
from mediamill.pipeline.export.state import HIDDEN
from mediamill.pipeline.export.values import file_key, rows_of, to_json
from mediamill.schemas import columns as c

LABELS = "labels.json"


class LabeledPictures:
    """Pictures, and the part of labels.json that is about them."""

    def __init__(self, context: ExportContext, number: int, scratch: Path) -> None:
        self.rows, self.size = 0, 0
        self.left_out: Counter[str] = Counter()
        self._context, self._number, self._scratch = context, number, scratch
        self._files: list[tuple[str, Path]] = []
        self._lines: list[str] = []

    def add(self, table: pa.Table) -> None:
        text = self._context.text
        needed = {*self._context.columns, text, *media_columns(table.schema)}
        rows = rows_of(table.select([name for name in table.schema.names if name in needed]))
        for index, medium in self._context.reader.read_pictures(rows, self.left_out):
            row = rows[index]
            key = file_key(row[c.ID])
            path = self._scratch / key
            path.write_bytes(medium.data)
            self._files.append((f"data/{key}.{medium.extension}", path))
            attributes = {name: row[name] for name in self._context.columns if name != text}
            label = {"label": row.get(text), "attributes": attributes}
            self._lines.append(f"{to_json(key)}: {to_json(label)}")
            self.rows, self.size = self.rows + 1, self.size + len(medium.data)

    def close(self) -> list[tuple[str, Path]]:
        path = self._scratch / ".labels"
        path.write_text("".join(f"{line}\n" for line in self._lines), "utf-8", errors="replace")
        return [*self._files, (f"{HIDDEN}/labels-{self._number:06}.part", path)]


def join(parts: Iterator[Path]) -> Iterator[bytes]:
    """Yields the content of labels.json."""
    yield b'{"classes": null, "labels": {'
    first = True
    for part in parts:
        with part.open("rb") as file:
            for line in file:
                yield (b"\n" if first else b",\n") + line.rstrip(b"\n")
                first = False
    yield b"\n}}\n"
