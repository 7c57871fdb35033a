"""A work queue with stealing.

Each worker gets consecutive rows, so that their outputs are contiguous in memory.
"""

from collections import deque
from collections.abc import Hashable, Sequence

from mediamill.pipeline.decoding.worker_handle import PendingRow

_BATCH_BYTES = 256 * 1024  # of the media of one batch, if it has several rows
_UNASSIGNED = None


class WorkQueue:
    """The rows of one table that are not being decoded. waiting: how many they are."""

    def __init__(self, rows: deque[PendingRow], workers: int) -> None:
        self._workers = workers
        self._queues: dict[Hashable, deque[PendingRow]] = {_UNASSIGNED: rows}
        self.waiting = len(rows)

    def take(self, worker: Hashable, max_rows: int) -> list[PendingRow]:
        """The worker's next batch of at least one row. The queue must not be empty."""
        queue = self._queues.setdefault(worker, deque())
        if not queue:
            # Take all unassigned rows, else steal the second half of the longest queue.
            source = self._queues[_UNASSIGNED]
            count = len(source)
            if not source:
                source = max(self._queues.values(), key=len)
                count = -(-len(source) // 2)
            for _ in range(count):
                queue.appendleft(source.pop())
        count = min(max_rows, -(-len(queue) // self._workers))
        rows = [queue.popleft()]
        size = rows[0].request.size
        while len(rows) < count:
            size += queue[0].request.size
            if size > _BATCH_BYTES:
                break
            rows.append(queue.popleft())
        self.waiting -= len(rows)
        return rows

    def put_back(self, worker: Hashable, rows: Sequence[PendingRow]) -> None:
        """Takes back rows of the worker's last batch that have to be decoded again."""
        self._queues[worker].extendleft(reversed(rows))
        self.waiting += len(rows)
