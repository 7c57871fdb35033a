"""The rows of a run that wait for another try, in a later pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mediamill.pipeline.ladder.attempts import row_ordinals

_MAX_BYTES = 64 << 20  # in memory, of all rows; others are written as they are


class DeferredRows:
    """Rows in bounded memory; the coordinator inherits it. Tables come and go as Arrow IPC streams.

    With the process only the rows' attempts are lost: the rows themselves are not finished yet.
    """

    def __init__(self) -> None:
        self._deferred: list[bytes] = []
        self._deferred_bytes = 0

    def defer(self, table: bytes) -> bool:
        """Keeps the rows, and returns True; False if there is no room for them."""
        if self._deferred_bytes + len(table) > _MAX_BYTES:
            return False
        self._deferred.append(table)
        self._deferred_bytes += len(table)
        return True

    def take_deferred(self) -> list[bytes]:
        """Returns all rows, and forgets them."""
        tables = self._deferred
        self._deferred, self._deferred_bytes = [], 0
        return tables


def to_bytes(table: pa.Table) -> bytes:
    """Returns the table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def take_deferred(coordinator: Any) -> pa.Table | None:
    """Returns the rows that wait for another try, each once; None if there are none."""
    import ray

    tables: Sequence[bytes] = ray.get(coordinator.take_deferred.remote())
    if not tables:
        return None
    table = pa.concat_tables([pa.ipc.open_stream(content).read_all() for content in tables])
    # A write task that Ray repeats hands its rows over again.
    last = {row: number for number, row in enumerate(row_ordinals(table))}
    return table.take(pa.array(np.array(list(last.values()), np.int64)))
