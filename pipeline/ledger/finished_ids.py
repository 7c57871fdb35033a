"""Reads the ids of all finished rows from the output: from its visible files, and from the parts
that are not visible yet.

The log has one bit for each row, and no ids. They are needed when the manifest has its rows in
other files than before.
"""

from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger import publish
from mediamill.pipeline.ledger.state import Group, LedgerState, Part
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c

_READERS = 8
_BATCH_ROWS = 8192
_BUFFER_BYTES = 4 << 20  # of the column; without it, a row group is read whole
_STAGED_BYTES = 32 << 20  # of parts that are read at once


def read_finished_ids(output: Place, state: LedgerState, take: Callable[[pa.Array], None]) -> None:
    """Calls `take` with the ids of all finished rows, some at a time, from several threads.

    Raises FileNotFoundError when another process publishes rows meanwhile.
    """
    visible = publish.visible_files(output)

    def take_file(name: str) -> None:
        place = output / name
        with ExitStack() as stack:
            source = stack.enter_context(place.fs.open(place.path, "rb", cache_type="none"))
            file = stack.enter_context(pq.ParquetFile(source, buffer_size=_BUFFER_BYTES))
            for batch in file.iter_batches(_BATCH_ROWS, columns=[c.ID]):
                take(batch.column(0))

    with ThreadPoolExecutor(_READERS) as readers:
        list(readers.map(take_file, visible))

    def take_hidden(table: pa.Table) -> None:
        for ids in table[c.ID].chunks:
            take(ids)

    read_hidden(output, state, set(visible), take_hidden)


def read_hidden(
    output: Place, state: LedgerState, visible: Container[str], take: Callable[[pa.Table], None]
) -> None:
    """Calls `take` with the finished rows that are in none of the visible files, some at a time.

    Raises FileNotFoundError when another process publishes rows meanwhile.
    """
    # A group whose file is visible already is read from the file.
    hidden = [group.parts for name, group in state.groups.items() if name not in visible]
    parts = [part for group in (*hidden, *state.parts.values()) for part in group]
    for some in _batches(parts):
        group = Group("", tuple(some))
        take(publish.merged(group, publish.read_parts(output, [group])))


def _batches(parts: list[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for part in sorted(parts):  # neighbours are read together
        if batch and size + part.length > _STAGED_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part.length
    if batch:
        yield batch
