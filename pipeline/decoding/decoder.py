"""Turns the media of rows into patches, receipts and prompts, in processes that may break.

A crash, a hang or a bomb costs the row that brought it, and no other: its process is ended and
replaced. What a row's columns are is not known here.
"""

import json
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.decoding import wire
from pipeline.decoding.answer import Answer, Kind, Receipt, checked
from pipeline.decoding.nursery import Nursery, Settings, Worker
from pipeline.decoding.shares import Shares
from pipeline.records import RowFailure
from schemas.errors import ErrorCode

__all__ = ["Answer", "DecodeRules", "Decoder", "Medium", "Question", "Receipt"]

_TRIES = 2  # a process may be ended from outside; what ends a second one does it itself
_LOSSES = 3  # of the nursery, with all its workers, before the row is suspected
_ROWS = 1000  # of one worker, before it is replaced: libraries leak
_GROWTH = 256 * 1024**2  # bytes that a worker may hold between rows more than when it was new
_ANSWER_S = 10.0  # for the rest of an answer that has begun: other rows wait
_HEADER = 16 * 1024**2  # bytes of an answer beside its patches: times and notes of many frames


@dataclass(frozen=True)
class DecodeRules:
    """timeout_s: for all media of one row. max_bytes: of memory, for the same.

    slots: rows that are decoded at once.
    """

    timeout_s: float = 300.0
    max_bytes: int = 4 * 1024**3
    slots: int = 2


@dataclass(frozen=True)
class Medium:
    """content: of the file, or where it is. kind: None = told from the bytes.

    start_s, end_s: a window of a video, in seconds.
    """

    content: memoryview | Path
    kind: Kind | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Question:
    """The media of one row and what is asked about them, as JSON: {"messages": a chat}, or
    {"prompt": text, "system": text or null}; None = nothing, and there will be no ids.
    """

    media: Sequence[Medium]
    chat: Mapping[str, Any] | None = None

    @property
    def size(self) -> int:
        """Bytes of the media that are in memory."""
        return sum(one.content.nbytes for one in self.media if not isinstance(one.content, Path))


class Decoder:
    """Processes that decode, for the threads of this one."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        rules: DecodeRules,
        factory: str = "pipeline.decoding.child:load_processor",
    ) -> None:
        """arguments: JSON, of `factory`. Raises as Nursery."""
        self._rules = rules
        self._nursery = Nursery(Settings(factory, arguments, rules.max_bytes))
        self._slots = Shares([_Slot(self._nursery, rules) for _ in range(rules.slots)])

    @property
    def nursery(self) -> int:
        """The number of the process whose forks decode."""
        return self._nursery.process

    def prepare(self, questions: Iterable[Question]) -> list[Answer]:
        """The answers, in the order of the questions. Several threads may call it at once.

        Raises RuntimeError when no process can be had.
        """
        answers: dict[int, Answer] = {}
        waiting: deque[tuple[int, Question]] = deque()
        for number, question in enumerate(questions):
            if question.size > self._rules.max_bytes:
                answers[number] = _failed(
                    ErrorCode.DECODE_TOO_LARGE,
                    f"the row's media are {question.size} bytes long, and decoding them may take "
                    f"{self._rules.max_bytes} bytes of memory: raise limits.decode_bytes",
                )
            else:
                waiting.append((number, question))
        busy: dict[_Slot, int] = {}
        with self._slots.visit() as mine:
            try:
                while waiting or busy:
                    while waiting and (slot := mine.take()) is not None:
                        busy[slot], question = waiting.popleft()
                        slot.begin(question)
                    for slot, speaks in _due(list(busy)):
                        answer = slot.finish() if speaks else slot.give_up()
                        if answer is not None:
                            answers[busy.pop(slot)] = answer
                            mine.give(slot)
            finally:
                for slot in busy:  # after an error
                    slot.drop()
        return [answers[number] for number in sorted(answers)]

    def close(self) -> None:
        """Ends the processes, when no thread uses them; also done when nothing refers to this."""
        self._nursery.close()


class _CrashError(Exception):
    """A worker's process has ended over a row, or said what no sound one says."""


class _Slot:
    """One worker at a time, the row that it is at, and the rule for when it is replaced."""

    def __init__(self, nursery: Nursery, rules: DecodeRules) -> None:
        self._nursery = nursery
        self._rules = rules
        self._worker: Worker | None = None
        self._rows = 0
        self._at_first = self._now = 0  # bytes that the worker holds
        self._question = Question(())
        self._crashes = self._losses = 0  # over this row, and while it was in work
        self.deadline = 0.0

    @property
    def link(self) -> socket.socket:
        """Readable when there is an answer, or never will be."""
        assert self._worker is not None
        return self._worker.link

    def begin(self, question: Question) -> None:
        """Has the worker begin a row. Raises RuntimeError when there can be none."""
        self._question = question
        self._crashes = self._losses = 0
        self._send()

    def finish(self) -> Answer | None:
        """The answer, or None when the row had to be begun anew. Raises RuntimeError."""
        try:
            answer = self._receive()
            if answer is not None:
                return answer
        except _CrashError as error:
            self._crashes += 1
            if self._crashes == _TRIES:
                return _failed(ErrorCode.DECODE_CRASHED, f"{error}, {_TRIES} times of {_TRIES}")
        self._send()
        return None

    def give_up(self) -> Answer:
        """For a row that is late."""
        self._end()
        return _failed(
            ErrorCode.DECODE_TIMEOUT,
            f"the row's media were not decoded within {self._rules.timeout_s:g} s: "
            "raise limits.decode_timeout_s",
        )

    def drop(self) -> None:
        """Ends the row that is in work; nobody wants to know any more."""
        if self._worker is not None:
            self._end()

    def _send(self) -> None:
        header, parts = _request(self._question)
        worker = self._ready()
        self.deadline = time.monotonic() + self._rules.timeout_s
        worker.memory.write(parts)
        with suppress(wire.GoneError, TimeoutError):  # which is found when the answer is read
            wire.send(worker.link, header, self.deadline)

    def _receive(self) -> Answer | None:
        """None when the worker has ended for no fault of the row."""
        worker = self._worker
        assert worker is not None
        wanted = [medium.kind for medium in self._question.media]
        memory, shapes = worker.memory, self._nursery.shapes
        try:
            told = wire.receive(worker.link, _HEADER, time.monotonic() + _ANSWER_S)
            answer = checked(told.header, memory.read, memory.size, wanted, shapes)
        except wire.GoneError as error:
            status = self._end()
            if status is None and self._losses < _LOSSES:
                self._losses += 1
                return None
            raise _CrashError(
                f"decoding the row's media ended the process with {_named(status)}"
            ) from error
        except (wire.GarbledError, TimeoutError, ValueError) as error:
            self._end()
            raise _CrashError("decoding the row's media broke the process") from error
        memory.trim()
        self._rows += 1
        self._now = answer.data_bytes
        self._at_first = self._at_first or answer.data_bytes
        return answer

    def _ready(self) -> Worker:
        worker = self._worker
        if worker is not None:
            grown = self._now - self._at_first > _GROWTH
            if self._rows < _ROWS and not grown and wire.is_idle(worker.link):
                return worker
            self._end()
        self._worker, self._rows = self._nursery.fork(), 0
        self._at_first = self._now = 0
        return self._worker

    def _end(self) -> int | None:
        assert self._worker is not None
        worker, self._worker = self._worker, None
        return self._nursery.end(worker)


def _due(slots: Sequence[_Slot]) -> list[tuple[_Slot, bool]]:
    """Those that have something to say, True, or are late, False; waits for the first one."""
    poll = select.poll()
    by_handle = {slot.link.fileno(): slot for slot in slots}
    for handle in by_handle:
        poll.register(handle, select.POLLIN)
    first = min(slot.deadline for slot in slots)
    ready = {handle for handle, _ in poll.poll(max(0.0, first - time.monotonic()) * 1000)}
    now = time.monotonic()
    return [
        (slot, handle in ready)
        for handle, slot in by_handle.items()
        if handle in ready or slot.deadline <= now
    ]


def _request(question: Question) -> tuple[bytes, list[memoryview]]:
    """The header, and the bytes that lie in the shared memory."""
    media, parts = [], []
    for medium in question.media:
        content = medium.content
        told: dict[str, Any] = {
            "kind": medium.kind,
            "start_s": medium.start_s,
            "end_s": medium.end_s,
        }
        if isinstance(content, Path):
            told["path"] = str(content)
        else:
            told["bytes"] = content.nbytes
            parts.append(content)
        media.append(told)
    return json.dumps({"media": media, "chat": question.chat}).encode(), parts


def _failed(code: ErrorCode, message: str) -> Answer:
    return Answer(failure=RowFailure(code.value, message))


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
