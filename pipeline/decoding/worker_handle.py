"""Runs batches of rows in a decode worker, and replaces the worker when it fails.

A row that crashes its worker or exceeds its time limit fails alone: the replies before that row
remain valid, and the rows after it are returned to the caller.
"""

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mediamill.pipeline.decoding import socket_messages
from mediamill.pipeline.decoding.buffer_pool import Arena
from mediamill.pipeline.decoding.decode_request import DecodeRequest, encode_requests
from mediamill.pipeline.decoding.fork_server import ForkServer, Worker
from mediamill.pipeline.decoding.memory_estimate import MAX_GROWTH_BYTES
from mediamill.pipeline.decoding.message_stream import MessageFrame
from mediamill.pipeline.decoding.reply import DecodeReply, parse_probe_reply, parse_reply
from mediamill.pipeline.records import RowFailure
from mediamill.schemas.errors import ErrorCode

_MAX_CRASHES = 2  # something else may have killed the first worker, but hardly the second
_MAX_LOSSES = 3  # of the fork server with all its workers, before the row counts as the cause
_MAX_WORKER_ROWS = 1000  # then the worker is replaced: libraries leak
_MAX_BATCH_ROWS = 32
_BATCH_START_S = 0.25  # rows of a batch that have not started by then are returned


@dataclass
class PendingRow:
    """A row without a reply.

    number: its index among the requests of the call.
    crashes: of workers while they decoded this row.
    losses: how often the fork server ended meanwhile, which need not be the row's fault.
    """

    number: int
    request: DecodeRequest
    crashes: int = 0
    losses: int = 0


class _WorkerLostError(Exception):
    """The worker ended together with its fork server, which need not be the row's fault."""


class _WorkerCrashError(Exception):
    """The worker crashed on a row or sent an invalid reply."""


class WorkerHandle:
    """One worker, its batch, and the rules for when it is replaced.

    timeout_s: for all media of one row.
    batch_rows: rows that the next batch should have at most. It is 1 where rows take long or their
        replies are large, because the rows of a batch wait for each other.
    deadline: of the row that is decoded, in seconds of time.monotonic.
    """

    def __init__(self, fork_server: ForkServer, timeout_s: float) -> None:
        self._fork_server = fork_server
        self._timeout_s = timeout_s
        self._worker: Worker | None = None
        self._worker_rows = 0  # that this worker has decoded
        self._first_bytes = self._bytes = 0  # that the worker held after its first and last row
        self._pending: list[PendingRow] = []  # rows without a reply; the worker decodes the first
        self._sent = 0  # rows of the batch
        self.batch_rows = 1
        self.deadline = 0.0

    @property
    def doorbell(self) -> int:
        """A file descriptor, readable when replies have arrived or the worker has ended."""
        assert self._worker is not None
        return self._worker.replies.doorbell

    def send(self, rows: Sequence[PendingRow]) -> None:
        """Sends a batch to the worker. Raises RuntimeError when no worker can be started."""
        self._pending, self._sent = list(rows), len(rows)
        message, contents = encode_requests([row.request for row in rows], _BATCH_START_S)
        worker = self._usable_worker()
        # Any row of the batch may be the late one, and each has started within _BATCH_START_S.
        self.deadline = time.monotonic() + self._timeout_s + _BATCH_START_S * (len(rows) > 1)
        worker.memory.write(contents)
        # A worker that has ended is noticed where its replies are read.
        with suppress(socket_messages.ConnectionClosedError, TimeoutError):
            socket_messages.send(worker.connection, message, self.deadline)

    def receive(self, arena: Arena) -> tuple[dict[int, DecodeReply], list[PendingRow] | None]:
        """Reads the replies that have arrived.

        arena: memory for the replies' patches.
        Returns the replies by row number, and the rows of the batch that have to be decoded again;
        None instead of these rows while the worker continues with the batch.
        """
        assert self._worker is not None
        self._worker.replies.clear_doorbell()
        replies: dict[int, DecodeReply] = {}
        try:
            last = False
            while self._pending and not last:
                next_reply = self._next_reply(arena)
                if next_reply is None:
                    return replies, None
                reply, last = next_reply
                replies[self._pending.pop(0).number] = reply
            if last:
                self.batch_rows = self._sent - len(self._pending)
            elif self._sent == self.batch_rows:
                self.batch_rows = min(2 * self.batch_rows, _MAX_BATCH_ROWS)
        except _WorkerLostError:
            self._pending[0].losses += 1
        except _WorkerCrashError as error:
            row = self._pending[0]
            row.crashes += 1
            if row.crashes == _MAX_CRASHES:
                text = f"{error}, {_MAX_CRASHES} times of {_MAX_CRASHES}"
                replies[row.number] = failure_reply(ErrorCode.DECODE_CRASHED, text)
                del self._pending[0]
        return replies, self._take_pending()

    def receive_late(self, arena: Arena) -> tuple[dict[int, DecodeReply], list[PendingRow] | None]:
        """Does the same after the deadline: a row that is still being decoded fails."""
        replies, pending = self.receive(arena)
        if pending is not None:
            return replies, pending
        self._end_worker()
        row = self._pending.pop(0)
        replies[row.number] = failure_reply(
            ErrorCode.DECODE_TIMEOUT,
            f"the row's media were not decoded within {self._timeout_s:g} s: "
            "raise limits.decode_timeout_s",
        )
        return replies, self._take_pending()

    def abandon(self) -> None:
        """Discards the batch and ends the worker."""
        self._take_pending()
        if self._worker is not None:
            self._end_worker()

    def _take_pending(self) -> list[PendingRow]:
        pending, self._pending = self._pending, []
        return pending

    def _next_reply(self, arena: Arena) -> tuple[DecodeReply, bool] | None:
        """Returns the first pending row's reply, and whether it is the batch's last.

        Returns None if the reply has not arrived. Raises _WorkerLostError and _WorkerCrashError.
        """
        assert self._worker is not None
        try:
            frame = self._worker.replies.next_frame()
            if frame is None:
                return None
            reply = self._parse_reply(self._worker, self._pending[0].request, frame, arena)
        except socket_messages.ConnectionClosedError as error:
            status = self._end_worker()
            if status is None and self._pending[0].losses < _MAX_LOSSES:
                raise _WorkerLostError from error
            raise _WorkerCrashError(
                f"decoding the row's media ended the process with {_status_text(status)}"
            ) from error
        except (socket_messages.InvalidMessageError, TimeoutError, ValueError) as error:
            self._end_worker()
            raise _WorkerCrashError("decoding the row's media broke the process") from error
        self._worker_rows += 1
        self._bytes = reply.data_bytes
        self._first_bytes = self._first_bytes or reply.data_bytes
        return reply, frame.last

    def _parse_reply(
        self, worker: Worker, request: DecodeRequest, frame: MessageFrame, arena: Arena
    ) -> DecodeReply:
        if request.probe is not None:
            return parse_probe_reply(frame.header)
        offset = 0

        def read_shared(array: "npt.NDArray[np.uint8]") -> None:
            nonlocal offset
            worker.memory.read_into(offset, array)
            offset += array.size

        reply = parse_reply(
            frame.header,
            arena.allocate,
            read_shared if frame.shared else worker.replies.read_into,
            worker.memory.size if frame.shared else frame.size,
            [medium.kind for medium in request.media],
            len(request.chats) + len(request.texts),
            self._fork_server.shapes,
        )
        worker.memory.trim()
        return reply

    def _usable_worker(self) -> Worker:
        """Returns the worker, or a new one when it has to be replaced."""
        worker = self._worker
        if worker is not None:
            grown = self._bytes - self._first_bytes > MAX_GROWTH_BYTES
            if self._worker_rows < _MAX_WORKER_ROWS and not grown and worker.replies.is_idle:
                return worker
            self._end_worker()
        self._worker, self._worker_rows = self._fork_server.fork(), 0
        self._first_bytes = self._bytes = 0
        return self._worker

    def _end_worker(self) -> int | None:
        """Ends the worker and returns its exit status, see ForkServer.end."""
        assert self._worker is not None
        worker, self._worker = self._worker, None
        return self._fork_server.end(worker)


def failure_reply(code: ErrorCode, message: str) -> DecodeReply:
    """The reply for a row that failed outside its worker."""
    return DecodeReply(failure=RowFailure(code.value, message))


def _status_text(status: int | None) -> str:
    if status is None:
        return "the process that it was forked from"
    if status >= 0:
        return f"the exit status {status}"
    name = f"signal {-status}"
    with suppress(ValueError):
        name = signal.Signals(-status).name
    return f"{name}, as when memory runs out" if status == -signal.SIGKILL else name
