"""The rows that a retry does again: a hidden table of their old values, by id.

Write tasks look their rows up in it, to learn which visible file holds the old row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.log import HIDDEN
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.result import ATTEMPT_FIELDS

FILE = "__file"  # column: the visible file that holds the row
# Columns of the result that the table has; null where the result lacks them.
COPIED = (
    c.ERROR_CODE,
    c.ERROR_MESSAGE,
    c.ATTEMPT,
    c.RUN_ID,
    c.PROMPT_TOKENS,
    c.VISUAL_TOKENS,
    c.OUTPUT_TOKENS,
    c.ATTEMPT_HISTORY,
)
_BATCH_ROWS = 8192


def schema(id_type: pa.DataType) -> pa.Schema:
    """Returns the schema of the table."""
    texts = (c.ERROR_CODE, c.ERROR_MESSAGE, c.RUN_ID)
    types = {name: pa.string() if name in texts else pa.int32() for name in COPIED}
    types[c.ATTEMPT_HISTORY] = pa.list_(pa.struct(ATTEMPT_FIELDS))
    fields = [pa.field(name, kind) for name, kind in types.items()]
    return pa.schema([pa.field(c.ID, id_type), pa.field(FILE, pa.string()), *fields])


@contextmanager
def writer(output: Place, run: str, id_type: pa.DataType) -> Iterator[pq.ParquetWriter]:
    """Yields a writer of the run's table, which is stored durably at the end."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        with pq.ParquetWriter(path, schema(id_type), compression="zstd") as opened:
            yield opened
        storage.put_file(_place(output, run), path)


def find_rows(output: Place, run: str, ids: pa.ChunkedArray) -> dict[Any, dict[str, Any]]:
    """Returns those of the rows that are in the run's table, by id."""
    place, rows = _place(output, run), {}
    with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS):
            kind = batch.schema.field(c.ID).type
            chosen = batch.filter(pc.is_in(batch[c.ID], value_set=ids.cast(kind)))
            rows.update({row[c.ID]: row for row in chosen.to_pylist()})
    return rows


def read_ids(output: Place, run: str) -> Iterator[pa.Array]:
    """Yields the ids of the run's table."""
    place = _place(output, run)
    with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=[c.ID]):
            yield batch.column(0)


def remove(output: Place) -> None:
    """Removes the tables of all runs."""
    for name in storage.list_files(output / HIDDEN / "retry"):
        storage.remove(output / HIDDEN / "retry" / name)


def _place(output: Place, run: str) -> Place:
    return output / HIDDEN / "retry" / f"{run}.rows"
