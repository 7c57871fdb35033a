"""Finds the rows that the log calls finished and that no file of the output holds."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.bitmaps import Bitmap, count_bits
from mediamill.pipeline.ledger.finished_ids import read_hidden
from mediamill.pipeline.ledger.inventory import Files
from mediamill.pipeline.ledger.state import Counts, LedgerState
from mediamill.pipeline.manifest.finished_rows import Tail, find_finished
from mediamill.pipeline.manifest.manifest import Manifest
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c

_BATCH_ROWS = 8192
_READERS = 8
_TOKENS = (c.PROMPT_TOKENS, c.VISUAL_TOKENS, c.OUTPUT_TOKENS)


@dataclass(frozen=True)
class LostRows:
    """bitmaps: by number of a manifest file, the rows that the log calls finished and nobody has.

    rows: their number. unknown: finished rows in the output that are not finished by the log.
    ids, distinct: of all rows in the output. counts: of these rows.
    """

    bitmaps: dict[int, Bitmap]
    rows: int
    unknown: int
    ids: int
    distinct: int
    counts: Counts


def find_lost(output: Place, state: LedgerState, manifest: Manifest, files: Files) -> LostRows:
    """Reads the ids of all rows of the files, and of those that are hidden yet.

    Memory does not grow with the rows: they are sorted in a temporary file.
    """
    counts = Counts()

    def read(take: Callable[[pa.Array], None]) -> None:
        counts.__init__()  # type: ignore[misc]

        def take_file(name: str) -> Counts:
            place = output / name
            own = Counts()
            with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
                known = parquet.schema_arrow.names
                if c.ID not in known or c.STATUS not in known:
                    return own
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=_columns(known)):
                    take(batch.column(batch.schema.get_field_index(c.ID)))
                    own.add(counts_of(pa.Table.from_batches([batch])))
            return own

        with ThreadPoolExecutor(_READERS) as threads:
            for one in threads.map(take_file, files):
                counts.add(one)

        def take_hidden(table: pa.Table) -> None:
            for ids in table[c.ID].chunks:
                take(ids)
            counts.add(counts_of(table))

        read_hidden(output, state, set(files), take_hidden)

    tails = [Tail(file, 0) for file in manifest.files]
    found = find_finished(tails, read, state.counts.rows)
    numbers = {file.name: number for number, file in enumerate(state.files) if file.name}
    lost, unknown = {}, 0
    for file in manifest.files:
        if file.name not in numbers:
            continue
        done = state.done[numbers[file.name]]
        present = np.zeros_like(done)
        bitmap = found.bitmaps.get(file.name, present)[: done.size]
        present[: bitmap.size] = bitmap
        missing = done & ~present
        unknown += count_bits(present & ~done)
        if missing.any():
            lost[numbers[file.name]] = missing
    rows = sum(map(count_bits, lost.values()))
    return LostRows(lost, rows, unknown, found.ids, found.distinct, counts)


def counts_of(table: pa.Table) -> Counts:
    """Returns the counts of rows of the result. The engine made no tokens for copies."""
    statuses = pc.value_counts(table[c.ERROR_CODE].filter(pc.equal(table[c.STATUS], "error")))
    errors = {entry["values"].as_py(): entry["counts"].as_py() for entry in statuses}
    if c.DUPLICATE_OF in table.column_names:
        made = table.filter(pc.is_null(table[c.DUPLICATE_OF]))
    else:
        made = table
    prompt, visual, output = (
        int(pc.sum(made[name]).as_py() or 0) if name in made.column_names else 0 for name in _TOKENS
    )
    return Counts(table.num_rows - sum(errors.values()), errors, prompt, visual, output)


def _columns(known: list[str]) -> list[Any]:
    wanted = (c.ID, c.STATUS, c.ERROR_CODE, c.DUPLICATE_OF, *_TOKENS)
    return [name for name in wanted if name in known]
