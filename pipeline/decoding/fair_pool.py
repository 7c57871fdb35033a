"""Turns things that are few into shares for the threads that want to use them at once.

A thread that is alone may have all; when others come, it gives back what is more than its share.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class FairPool(Generic[T]):
    """The things that are free, and how many threads share them all."""

    def __init__(self, things: Sequence[T]) -> None:
        self._free = list(things)
        self._total = len(things)
        self._visits = 0
        self._change = threading.Condition()

    @contextmanager
    def visit(self) -> Iterator["Lease[T]"]:
        """Within it, this thread has a share; what it still holds at the end is given back."""
        with self._change:
            self._visits += 1
        visit = Lease(self)
        try:
            yield visit
        finally:
            for thing in list(visit.held):
                visit.give(thing)
            with self._change:
                self._visits -= 1

    def take(self, held: int) -> T | None:
        """One more for a thread that holds so many, or None; waits for the first one."""
        with self._change:
            if held == 0:
                self._change.wait_for(lambda: self._free)
            elif not self._free or held >= self._total // self._visits:
                return None
            return self._free.pop()

    def give(self, thing: T) -> None:
        """Gives one back. The one that was used last is the next to be used."""
        with self._change:
            self._free.append(thing)
            self._change.notify()


class Lease(Generic[T]):
    """One thread's use of the shares."""

    def __init__(self, shares: FairPool[T]) -> None:
        self._shares = shares
        self.held: list[T] = []

    def take(self) -> T | None:
        """One more, or None when this thread has its share; waits for the first one."""
        thing = self._shares.take(len(self.held))
        if thing is not None:
            self.held.append(thing)
        return thing

    def give(self, thing: T) -> None:
        """Gives one back."""
        self.held.remove(thing)
        self._shares.give(thing)
