"""Parquet: few large files, with the media in them if asked, as `datasets` reads pictures."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.export.formats import ExportContext
from mediamill.pipeline.export.values import file_key, rows_of
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import take_rows
from mediamill.schemas.errors import JobError

IMAGE = "image"
_IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
# `datasets` (Hugging Face) reads the types of columns from here; the others follow from Arrow.
_FEATURES = {"info": {"features": {IMAGE: {"_type": "Image"}}}}
_ROW_GROUP, _ROW_GROUP_BYTES = 65_536, 64 * 1024**2


class ParquetShard:
    """One Parquet file."""

    def __init__(self, context: ExportContext, number: int, scratch: Path) -> None:
        self.rows, self.size = 0, 0
        self.left_out: Counter[str] = Counter()
        self._context, self._name, self._path = context, f"part-{number:06}.parquet", scratch / "p"
        schema = export_schema(context)
        self._writer = pq.ParquetWriter(self._path, schema, compression="zstd")
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        chosen = table.select(list(self._context.columns))
        if self._context.media:
            chosen = self._with_media(table, chosen)
        self.rows += chosen.num_rows
        self.size += chosen.nbytes
        self._waiting.append(chosen)
        if (
            sum(one.num_rows for one in self._waiting) >= _ROW_GROUP
            or sum(one.nbytes for one in self._waiting) >= _ROW_GROUP_BYTES
        ):
            self._flush()

    def close(self) -> list[tuple[str, Path]]:
        self._flush()
        self._writer.close()
        return [(self._name, self._path)]

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting = []

    def _with_media(self, table: pa.Table, chosen: pa.Table) -> pa.Table:
        indices, images = [], []
        rows = rows_of(table.select(media_columns(table.schema)))
        for index, medium in self._context.reader.read_pictures(rows, self.left_out):
            indices.append(index)
            path = f"{file_key(rows[index][c.ID])}.{medium.extension}"
            images.append({"bytes": medium.data, "path": path})
        chosen = take_rows(chosen, np.array(indices, np.int64))
        chosen = chosen.append_column(IMAGE, pa.array(images, _IMAGE_TYPE))
        return chosen.replace_schema_metadata(export_schema(self._context).metadata)


def export_schema(context: ExportContext) -> pa.Schema:
    """Returns the schema of the exported files. Raises JobError if `image` is taken."""
    schema = pa.schema([context.schema.field(name) for name in context.columns])
    if context.media:
        if IMAGE in schema.names:
            raise JobError(
                f"--media: found a column named {IMAGE}, which the pictures need: leave it out "
                "with --columns"
            )
        schema = schema.append(pa.field(IMAGE, _IMAGE_TYPE))
        schema = schema.with_metadata({"huggingface": json.dumps(_FEATURES)})
    return schema


def media_columns(schema: pa.Schema) -> list[str]:
    """Returns the columns that name a row's medium."""
    return [name for name in (c.ID, c.URI, c.MEDIA, c.SHA256) if name in schema.names]
