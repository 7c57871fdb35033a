"""Turns the finished rows of an output back into what was answered.

So copies of them that come later need not be asked: in a run that goes on where another stopped,
and of rows by which a manifest has grown.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.pipeline.tasks.answer_cache import Answered
from mediamill.pipeline.tasks.dedupe import RowAnswer
from mediamill.schemas import columns as c

_ROWS = 1024  # that are Python objects at once: vectors are large
_NOBODY = ""  # no row's name: one that is finished is never asked again


def previous_answers(output: Place, values: Sequence[str]) -> Iterator[dict[bytes, Answered]]:
    """By content, what the visible rows that are ok were told, of some rows at a time.

    values: the columns that an answer has. Rows that are copies tell nothing new; those that failed
    may do better when they are asked again. Raises what the file system does.
    """
    columns = [c.ID, c.CONTENT_HASH, *values, c.STATUS, c.DUPLICATE_OF]
    for name in visible_files(output):
        for table in _row_groups(output / name, columns):
            is_ok = pc.equal(table[c.STATUS], c.STATUS_OK)
            table = table.filter(pc.and_(is_ok, pc.is_null(table[c.DUPLICATE_OF])))
            table = table.drop_columns([c.STATUS, c.DUPLICATE_OF])
            for first in range(0, table.num_rows, _ROWS):
                yield dict(map(_answered, table.slice(first, _ROWS).to_pylist()))


def _answered(row: dict[str, Any]) -> tuple[bytes, Answered]:
    content, row_id = bytes.fromhex(row.pop(c.CONTENT_HASH)), row.pop(c.ID)
    return content, Answered(_NOBODY, row_id, RowAnswer(row))


def _row_groups(file: Place, columns: Sequence[str]) -> Iterator[pa.Table]:
    """One after the other: a file may be larger than memory. Most have one, and are opened once."""
    done, count = 0, 1
    while done < count:
        table, count = storage.with_retries(file, partial(_read, file.path, done, columns))
        yield table
        done += 1


def _read(path: str, group: int, columns: Sequence[str], fs: Any) -> tuple[pa.Table, int]:
    """A row group, and how many there are."""
    with fs.open(path, "rb") as opened, pq.ParquetFile(opened) as parquet:
        groups = range(parquet.num_row_groups)
        return parquet.read_row_groups(groups[group : group + 1], columns=columns), len(groups)
