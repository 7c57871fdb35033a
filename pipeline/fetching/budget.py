"""Limits the bytes of fetched media that a process holds before they are decoded.

A fetch reserves bytes in a budget that all threads share, and waits while the budget is full. For
the row that the consumer waits for it may overdraw the budget, so that there is always progress.
"""

import threading
import weakref
from collections.abc import Callable


class ByteBudget:
    """A number of bytes, shared by threads. `changed` is notified when a waiter may proceed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._waiters = 0
        # Re-entrant, because finalizers release bytes, and run at any time in any thread.
        self.changed = threading.Condition(threading.RLock())

    @property
    def held(self) -> int:
        """Bytes that are reserved."""
        return self._held

    @property
    def starved(self) -> bool:
        """Whether a fetch waits for bytes."""
        return self._waiters > 0

    def acquire(self, count: int, may_overdraw: Callable[[], bool]) -> None:
        """Reserves `count` bytes. Waits until they are free or may_overdraw() is true."""
        with self.changed:
            if self._held + count > self._size:
                self._waiters += 1
                self.changed.notify_all()
                try:
                    self.changed.wait_for(
                        lambda: self._held + count <= self._size or may_overdraw()
                    )
                finally:
                    self._waiters -= 1
            self._held += count

    def release(self, count: int) -> None:
        """Returns bytes that were reserved."""
        with self.changed:
            self._held -= count
            self.changed.notify_all()


class Reservation:
    """The bytes that one medium has reserved in a budget. One thread at a time may change it."""

    def __init__(self, budget: ByteBudget, may_overdraw: Callable[[], bool] = lambda: True) -> None:
        self._budget = budget
        self._may_overdraw = may_overdraw
        self._size = 0

    def resize(self, size: int) -> None:
        """Changes the reservation to `size` bytes; waits for more, releases what is too much."""
        if size > self._size:
            self._budget.acquire(size - self._size, self._may_overdraw)
        elif size < self._size:
            self._budget.release(self._size - size)
        self._size = size

    def bind_to(self, owner: object) -> None:
        """Releases the reservation when `owner` is garbage-collected."""
        size, self._size = self._size, 0
        weakref.finalize(owner, self._budget.release, size).atexit = False
