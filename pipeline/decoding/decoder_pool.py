"""Turns the media of rows into patches, receipts and prompts, in processes that may break.

A crash, a hang or a bomb costs the row that brought it, and no other: its process is ended and
replaced. What a row's columns are is not known here.
"""

import select
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from mediamill.pipeline.decoding.buffer_pool import Arena, BufferPool
from mediamill.pipeline.decoding.fair_pool import FairPool
from mediamill.pipeline.decoding.fork_server import ForkServer, Settings
from mediamill.pipeline.decoding.question import DecodeRequest, MediumRequest
from mediamill.pipeline.decoding.reply import DecodeReply, Receipt
from mediamill.pipeline.decoding.work_queue import WorkQueue
from mediamill.pipeline.decoding.worker_handle import DecodeRules, Row, WorkerHandle, failed
from mediamill.schemas.errors import ErrorCode

__all__ = ["DecodeReply", "DecodeRequest", "DecodeRules", "DecoderPool", "MediumRequest", "Receipt"]


class DecoderPool:
    """Processes that decode, for the threads of this one."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        rules: DecodeRules,
        factory: str = "mediamill.pipeline.decoding.decode_worker:load_processor",
    ) -> None:
        """arguments: JSON, of `factory`. Raises as ForkServer."""
        self._rules = rules
        self._nursery = ForkServer(Settings(factory, arguments, rules.max_bytes))
        self._slots = FairPool([WorkerHandle(self._nursery, rules) for _ in range(rules.slots)])
        self.warm = BufferPool()

    @property
    def nursery(self) -> int:
        """The number of the process whose forks decode."""
        return self._nursery.process

    def prepare(self, questions: Iterable[DecodeRequest]) -> list[DecodeReply]:
        """The answers, in the order of the questions. Several threads may call it at once.

        Raises RuntimeError when no process can be had.
        """
        answers: dict[int, DecodeReply] = {}
        rows: deque[Row] = deque()
        for number, question in enumerate(questions):
            if question.size > self._rules.max_bytes:
                answers[number] = failed(
                    ErrorCode.DECODE_TOO_LARGE,
                    f"the row's media are {question.size} bytes long, and decoding them may take "
                    f"{self._rules.max_bytes} bytes of memory: raise limits.decode_bytes",
                )
            else:
                rows.append(Row(number, question))
        lanes = WorkQueue(rows, self._rules.slots)
        shelves: dict[WorkerHandle, Arena] = {}
        busy: set[WorkerHandle] = set()
        with self._slots.visit() as mine:
            try:
                while lanes.waiting or busy:
                    while lanes.waiting and (slot := mine.take()) is not None:
                        busy.add(slot)
                        shelves.setdefault(slot, self.warm.shelf())
                        slot.begin(lanes.take(slot, slot.most))
                    for slot, speaks in _due(busy):
                        shelf = shelves[slot]
                        found, left = slot.listen(shelf) if speaks else slot.give_up(shelf)
                        answers |= found
                        if left is not None:
                            lanes.give(slot, left)
                            busy.remove(slot)
                            mine.give(slot)
            finally:
                for slot in busy:  # after an error
                    slot.drop()
        return [answers[number] for number in sorted(answers)]

    def close(self) -> None:
        """Ends the processes, when no thread uses them; also done when nothing refers to this."""
        self._nursery.close()


def _due(slots: Iterable[WorkerHandle]) -> list[tuple[WorkerHandle, bool]]:
    """Those that have something to say, True, or are late, False; waits for the first one."""
    poll = select.poll()
    by_handle = {slot.bell: slot for slot in slots}
    for handle in by_handle:
        poll.register(handle, select.POLLIN)
    first = min(slot.deadline for slot in by_handle.values())
    ready = {handle for handle, _ in poll.poll(max(0.0, first - time.monotonic()) * 1000)}
    now = time.monotonic()
    return [
        (slot, handle in ready)
        for handle, slot in by_handle.items()
        if handle in ready or slot.deadline <= now
    ]
