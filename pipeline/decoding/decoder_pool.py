"""Decodes the media of rows in worker processes: patches, receipts and token ids.

A crash, a hang or a decompression bomb fails the row that brought it and no other: the worker is
replaced.
"""

import select
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from mediamill.pipeline.decoding.buffer_pool import Arena, BufferPool
from mediamill.pipeline.decoding.decode_request import DecodeRequest, MediumRequest
from mediamill.pipeline.decoding.fair_pool import FairPool
from mediamill.pipeline.decoding.fork_server import ForkServer, ForkServerSettings
from mediamill.pipeline.decoding.reply import DecodeReply
from mediamill.pipeline.decoding.work_queue import WorkQueue
from mediamill.pipeline.decoding.worker_handle import (
    DecodeRules,
    PendingRow,
    WorkerHandle,
    failure_reply,
)
from mediamill.schemas.errors import ErrorCode

__all__ = ["DecodeReply", "DecodeRequest", "DecodeRules", "DecoderPool", "MediumRequest"]


class DecoderPool:
    """Worker processes that decode, for the threads of this process.

    buffers: the pool that the replies' patches lie in.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        rules: DecodeRules,
        factory: str = "mediamill.pipeline.decoding.decode_worker:load_processor",
    ) -> None:
        """arguments: of the factory, as JSON.

        Raises ModelError for a checkpoint that cannot be used, RuntimeError for all else.
        """
        self._rules = rules
        self._fork_server = ForkServer(ForkServerSettings(factory, arguments, rules.max_bytes))
        self._workers = FairPool(
            [WorkerHandle(self._fork_server, rules) for _ in range(rules.workers)]
        )
        self.buffers = BufferPool()

    @property
    def fork_server_pid(self) -> int:
        """Of the process that the workers are forked from."""
        return self._fork_server.pid

    def prepare(self, requests: Iterable[DecodeRequest]) -> list[DecodeReply]:
        """The replies, in the order of the requests. Several threads may call it at once.

        Raises RuntimeError when no worker can be started.
        """
        replies: dict[int, DecodeReply] = {}
        rows: deque[PendingRow] = deque()
        for number, request in enumerate(requests):
            if request.size > self._rules.max_bytes:
                replies[number] = failure_reply(
                    ErrorCode.DECODE_TOO_LARGE,
                    f"the row's media are {request.size} bytes long, and decoding them may take "
                    f"{self._rules.max_bytes} bytes of memory: raise limits.decode_bytes",
                )
            else:
                rows.append(PendingRow(number, request))
        queue = WorkQueue(rows, self._rules.workers)
        arenas: dict[WorkerHandle, Arena] = {}
        busy: set[WorkerHandle] = set()
        with self._workers.lease() as lease:
            try:
                while queue.waiting or busy:
                    while queue.waiting and (worker := lease.acquire()) is not None:
                        busy.add(worker)
                        arenas.setdefault(worker, self.buffers.arena())
                        worker.send(queue.take(worker, worker.batch_rows))
                    for worker, rings in _ready_or_late(busy):
                        arena = arenas[worker]
                        received, pending = (
                            worker.receive(arena) if rings else worker.receive_late(arena)
                        )
                        replies |= received
                        if pending is not None:
                            queue.put_back(worker, pending)
                            busy.remove(worker)
                            lease.release(worker)
            finally:
                for worker in busy:  # after an error
                    worker.abandon()
        return [replies[number] for number in sorted(replies)]

    def close(self) -> None:
        """Ends the processes, which no thread may be using.

        They end as well when nothing refers to the pool any more.
        """
        self._fork_server.close()


def _ready_or_late(workers: Iterable[WorkerHandle]) -> list[tuple[WorkerHandle, bool]]:
    """Waits for the first doorbell or deadline.

    Returns the workers whose doorbell rings, with True, and those that are late, with False.
    """
    poll = select.poll()
    by_doorbell = {worker.doorbell: worker for worker in workers}
    for doorbell in by_doorbell:
        poll.register(doorbell, select.POLLIN)
    first = min(worker.deadline for worker in by_doorbell.values())
    ringing = {fd for fd, _ in poll.poll(max(0.0, first - time.monotonic()) * 1000)}
    now = time.monotonic()
    return [
        (worker, doorbell in ringing)
        for doorbell, worker in by_doorbell.items()
        if doorbell in ringing or worker.deadline <= now
    ]
