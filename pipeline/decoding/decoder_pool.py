"""Decodes the media of rows in worker processes: patches, receipts and token ids.

A crash, a hang or a decompression bomb fails only the row that caused it: the worker is replaced.
"""

import select
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from mediamill.model.media.limits import MediaLimits
from mediamill.pipeline.decoding.buffer_pool import Arena, BufferPool
from mediamill.pipeline.decoding.decode_request import DecodeRequest, MediumRequest
from mediamill.pipeline.decoding.fair_pool import FairPool
from mediamill.pipeline.decoding.fork_server import ForkServer
from mediamill.pipeline.decoding.reply import DecodeReply
from mediamill.pipeline.decoding.work_queue import WorkQueue
from mediamill.pipeline.decoding.worker_handle import PendingRow, WorkerHandle, failure_reply
from mediamill.schemas.errors import ErrorCode
from mediamill.schemas.job import Limits

__all__ = ["DecodeReply", "DecodeRequest", "DecoderPool", "MediumRequest"]

WORKERS = 2  # rows that one pool decodes at once


class DecoderPool:
    """Worker processes that decode, for the threads of this process.

    buffers: the pool that the replies' patches lie in.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        limits: Limits,
        factory: str = "mediamill.pipeline.decoding.decode_worker:load_processor",
        workers: int = WORKERS,
    ) -> None:
        """arguments: of the factory, as JSON. It also gets `limits`, the arguments of MediaLimits.

        Raises ModelError for a checkpoint that cannot be used, RuntimeError for all else.
        """
        media_limits = limits.model_dump(include={field.name for field in fields(MediaLimits)})
        self._max_bytes, self._worker_count = limits.decode_bytes, workers
        self._fork_server = ForkServer(
            factory, {**arguments, "limits": media_limits}, limits.decode_bytes
        )
        self._workers = FairPool(
            [WorkerHandle(self._fork_server, limits.decode_timeout_s) for _ in range(workers)]
        )
        self.buffers = BufferPool()

    @property
    def fork_server_pid(self) -> int:
        """Of the process that the workers are forked from."""
        return self._fork_server.pid

    def prepare(self, requests: Iterable[DecodeRequest]) -> list[DecodeReply]:
        """Returns the replies in the order of the requests. Several threads may call it at once.

        Raises RuntimeError when no worker can be started.
        """
        replies: dict[int, DecodeReply] = {}
        rows: deque[PendingRow] = deque()
        for number, request in enumerate(requests):
            if request.size > self._max_bytes:
                replies[number] = failure_reply(
                    ErrorCode.DECODE_TOO_LARGE,
                    f"the row's media are {request.size} bytes long, and decoding them may take "
                    f"{self._max_bytes} bytes of memory: raise limits.decode_bytes",
                )
            else:
                rows.append(PendingRow(number, request))
        queue = WorkQueue(rows, self._worker_count)
        arenas = defaultdict[WorkerHandle, Arena](lambda: Arena(self.buffers))
        with self._workers.lease() as busy:
            try:
                while queue.waiting or busy:
                    while queue.waiting and (worker := self._workers.acquire(busy)) is not None:
                        worker.send(queue.take(worker, worker.batch_rows))
                    for worker, rings in _ready_or_late(busy):
                        receive = worker.receive if rings else worker.receive_late
                        received, pending = receive(arenas[worker])
                        replies |= received
                        if pending is not None:
                            queue.put_back(worker, pending)
                            self._workers.release(busy, worker)
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
