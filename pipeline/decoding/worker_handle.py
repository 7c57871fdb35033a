"""Turns the rows of one message into their answers, by one decoding process at a time.

A row that ends its process, or is late, costs itself alone: the process is replaced, the rows that
it had answered stay, and those after it are handed back. Which rows go together is not known here.
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
from mediamill.pipeline.decoding.fork_server import ForkServer, Worker
from mediamill.pipeline.decoding.memory_estimate import GROWTH_BYTES
from mediamill.pipeline.decoding.message_stream import Frame
from mediamill.pipeline.decoding.probe import told
from mediamill.pipeline.decoding.question import DecodeRequest, message
from mediamill.pipeline.decoding.reply import DecodeReply, checked
from mediamill.pipeline.records import RowFailure
from mediamill.schemas.errors import ErrorCode

_TRIES = 2  # a process may be ended from outside; what ends a second one does it itself
_LOSSES = 3  # of the nursery, with all its workers, before the row is suspected
_ROWS = 1000  # of one worker, before it is replaced: libraries leak
_MOST = 32  # rows of one message
_START_S = 0.25  # in which the rows of a message are begun; those that are not are handed back


@dataclass(frozen=True)
class DecodeRules:
    """timeout_s: for all media of one row. max_bytes: of memory, for the same.

    slots: rows that are decoded at once.
    """

    timeout_s: float = 300.0
    max_bytes: int = 4 * 1024**3
    slots: int = 2


@dataclass
class Row:
    """One row on its way. number: its place among all.

    crashes, losses: of processes that had it in work, by its own fault or not.
    """

    number: int
    question: DecodeRequest
    crashes: int = 0
    losses: int = 0


class _LostError(Exception):
    """A worker's process has ended for no fault of the row."""


class _CrashError(Exception):
    """A worker's process has ended over a row, or said what no sound one says."""


class WorkerHandle:
    """One worker at a time, the rows that it is at, and the rule for when it is replaced.

    most: rows that the next message should have at most. Where rows take long or their answers are
    large it has one: rows of a message wait for each other.
    """

    def __init__(self, nursery: ForkServer, rules: DecodeRules) -> None:
        self._nursery = nursery
        self._rules = rules
        self._worker: Worker | None = None
        self._answered = 0  # rows, by this worker
        self._at_first = self._now = 0  # bytes that the worker holds
        self._rows: list[Row] = []  # that have no answer yet; the worker is at the first
        self._sent = 0  # rows of the message
        self.most = 1
        self.deadline = 0.0

    @property
    def bell(self) -> int:
        """A handle that is readable when there are answers, or never will be."""
        assert self._worker is not None
        return self._worker.answers.bell

    def begin(self, rows: Sequence[Row]) -> None:
        """Has the worker begin. Raises RuntimeError when there can be none."""
        self._rows, self._sent = list(rows), len(rows)
        header, parts = message([row.question for row in rows], _START_S)
        worker = self._ready()
        # Any of the rows may be the late one, and it has been begun within _START_S.
        self.deadline = time.monotonic() + self._rules.timeout_s + _START_S * (len(rows) > 1)
        worker.memory.write(parts)
        with suppress(
            socket_messages.GoneError, TimeoutError
        ):  # which is found when answers are read
            socket_messages.send(worker.link, header, self.deadline)

    def listen(self, shelf: Arena) -> tuple[dict[int, DecodeReply], list[Row] | None]:
        """The answers that have come, by the numbers of their rows; and the rows that have to begin
        anew, None while the worker is still at them.

        shelf: for the answers' bytes.
        """
        assert self._worker is not None
        self._worker.answers.hear()
        answers: dict[int, DecodeReply] = {}
        try:
            last = False
            while self._rows and not last:
                taken = self._take(shelf)
                if taken is None:
                    return answers, None
                answer, last = taken
                answers[self._rows.pop(0).number] = answer
            if last:
                self.most = self._sent - len(self._rows)
            elif self._sent == self.most:
                self.most = min(2 * self.most, _MOST)
        except _LostError:
            self._rows[0].losses += 1
        except _CrashError as error:
            row = self._rows[0]
            row.crashes += 1
            if row.crashes == _TRIES:
                text = f"{error}, {_TRIES} times of {_TRIES}"
                answers[row.number] = failed(ErrorCode.DECODE_CRASHED, text)
                del self._rows[0]
        return answers, self._left()

    def give_up(self, shelf: Arena) -> tuple[dict[int, DecodeReply], list[Row] | None]:
        """As `listen`, when the row in work is late."""
        answers, left = self.listen(shelf)
        if left is not None:
            return answers, left
        self._end()
        row = self._rows.pop(0)
        answers[row.number] = failed(
            ErrorCode.DECODE_TIMEOUT,
            f"the row's media were not decoded within {self._rules.timeout_s:g} s: "
            "raise limits.decode_timeout_s",
        )
        return answers, self._left()

    def drop(self) -> None:
        """Ends the rows that are in work; nobody wants to know any more."""
        self._left()
        if self._worker is not None:
            self._end()

    def _left(self) -> list[Row]:
        left, self._rows = self._rows, []
        return left

    def _take(self, shelf: Arena) -> tuple[DecodeReply, bool] | None:
        """The answer of the row in work, and whether it is the message's last; None = not yet."""
        assert self._worker is not None
        try:
            parcel = self._worker.answers.take()
            if parcel is None:
                return None
            answer = self._answer(self._worker, self._rows[0].question, parcel, shelf)
        except socket_messages.GoneError as error:
            status = self._end()
            if status is None and self._rows[0].losses < _LOSSES:
                raise _LostError from error
            raise _CrashError(
                f"decoding the row's media ended the process with {_named(status)}"
            ) from error
        except (socket_messages.GarbledError, TimeoutError, ValueError) as error:
            self._end()
            raise _CrashError("decoding the row's media broke the process") from error
        self._answered += 1
        self._now = answer.data_bytes
        self._at_first = self._at_first or answer.data_bytes
        return answer, parcel.last

    def _answer(
        self, worker: Worker, question: DecodeRequest, parcel: Frame, shelf: Arena
    ) -> DecodeReply:
        if question.measure is not None:
            measured, failure, data_bytes = told(parcel.header)
            return DecodeReply(failure=failure, data_bytes=data_bytes, measured=measured)
        at = 0

        def from_memory(array: "npt.NDArray[np.uint8]") -> None:
            nonlocal at
            worker.memory.read_into(at, array)
            at += array.size

        read_into = from_memory if parcel.shared else worker.answers.read_into
        wanted = [medium.kind for medium in question.media]
        prompts = len(question.chats) + len(question.texts)
        most = worker.memory.size if parcel.shared else parcel.size
        shapes = self._nursery.shapes
        answer = checked(parcel.header, shelf.room, read_into, most, wanted, prompts, shapes)
        worker.memory.trim()
        return answer

    def _ready(self) -> Worker:
        worker = self._worker
        if worker is not None:
            grown = self._now - self._at_first > GROWTH_BYTES
            if self._answered < _ROWS and not grown and worker.answers.is_idle:
                return worker
            self._end()
        self._worker, self._answered = self._nursery.fork(), 0
        self._at_first = self._now = 0
        return self._worker

    def _end(self) -> int | None:
        assert self._worker is not None
        worker, self._worker = self._worker, None
        return self._nursery.end(worker)


def failed(code: ErrorCode, message: str) -> DecodeReply:
    """The answer of a row with which something is wrong."""
    return DecodeReply(failure=RowFailure(code.value, message))


def _named(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "all that it had come from"
    if status >= 0:
        return f"the exit status {status}"
    name = f"signal {-status}"
    with suppress(ValueError):
        name = signal.Signals(-status).name
    return f"{name}, as when memory runs out" if status == -signal.SIGKILL else name
