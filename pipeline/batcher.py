"""Turns calls from many threads into full batches for one.

The engine takes one caller at a time and is fastest with full batches, while Ray hands blocks of
rows to several threads of the actor. Here the rows of all calls wait in one line. What a row is, is
not known.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher(Generic[Item, Answer]):
    """Runs `answer` on at most `size` items at a time, in a thread of its own.

    answer: gives one answer for each item, in order. What it raises reaches every caller that had
    an item in that batch. A batch is never waited for: it takes what came while the last one ran.
    """

    def __init__(self, answer: Callable[[Sequence[Item]], Sequence[Answer]], size: int) -> None:
        self._answer = answer
        self._size = size
        self._line: queue.SimpleQueue[tuple[Item, Future[Answer]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="batcher").start()

    def __call__(self, items: Sequence[Item]) -> list[Answer]:
        """The answers, in order, once all are there."""
        waiting: list[Future[Answer]] = []
        for item in items:
            waiting.append(Future())
            self._line.put((item, waiting[-1]))
        return [one.result() for one in waiting]

    def _work(self) -> None:
        while True:
            batch = [self._line.get()]
            while len(batch) < self._size and not self._line.empty():
                batch.append(self._line.get())
            try:
                answers = self._answer([item for item, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)
            except BaseException as error:  # noqa: BLE001 - the callers wait for ever otherwise
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
