"""Counts the bytes that a process holds of media which are not decoded yet, and makes fetches wait.

Whoever needs more than is left waits until others have given back. Somebody may always go on: the
row that is waited for. What the bytes are of is not known.
"""

import threading
import weakref
from collections.abc import Callable


class Budget:
    """So many bytes, shared by threads. `changed` is notified whenever waiting may have an end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._starved = 0
        # Re-entrant: memory is given back by finalizers, which run at any time in any thread.
        self.changed = threading.Condition(threading.RLock())

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        return self._held

    @property
    def starved(self) -> bool:
        """Whether a fetch waits for bytes."""
        return self._starved > 0

    def take(self, count: int, may_overdraw: Callable[[], bool]) -> None:
        """Waits until there is room for `count` bytes, or may_overdraw() says not to."""
        with self.changed:
            if self._held + count > self._size:
                self._starved += 1
                self.changed.notify_all()
                try:
                    self.changed.wait_for(
                        lambda: self._held + count <= self._size or may_overdraw()
                    )
                finally:
                    self._starved -= 1
            self._held += count

    def give(self, count: int) -> None:
        """Gives back what was taken."""
        with self.changed:
            self._held -= count
            self.changed.notify_all()


class Reservation:
    """What one medium has taken of the budget. One thread at a time changes it."""

    def __init__(self, budget: Budget, may_overdraw: Callable[[], bool] = lambda: True) -> None:
        self._budget = budget
        self._may_overdraw = may_overdraw
        self._size = 0

    def resize(self, size: int) -> None:
        """Has room for `size` bytes from now on; waits for more, gives back what is too much."""
        if size > self._size:
            self._budget.take(size - self._size, self._may_overdraw)
        elif size < self._size:
            self._budget.give(self._size - size)
        self._size = size

    def keep_for(self, owner: object) -> None:
        """What is taken is given back when `owner` is gone."""
        size, self._size = self._size, 0
        weakref.finalize(owner, self._budget.give, size).atexit = False
