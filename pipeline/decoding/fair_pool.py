"""A pool of a few resources that threads share fairly.

A thread that is alone may take all; when others come, it gets no more than its share of them.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class FairPool(Generic[T]):
    """The free resources, and the number of threads that share the pool."""

    def __init__(self, resources: Sequence[T]) -> None:
        self._free = list(resources)
        self._total = len(resources)
        self._threads = 0
        self._change = threading.Condition()

    @contextmanager
    def lease(self) -> Iterator[list[T]]:
        """Counts one more thread that shares the pool.

        Yields the list of the resources that this thread holds, for `acquire` and `release`.
        Resources that it still holds at the end are released.
        """
        with self._change:
            self._threads += 1
        held: list[T] = []
        try:
            yield held
        finally:
            with self._change:
                self._threads -= 1
                self._free += held
                self._change.notify(len(held))

    def acquire(self, held: list[T]) -> T | None:
        """Returns one more resource for a thread and appends it to those that the thread holds.

        Returns None if the thread has its share. Waits for the first resource.
        """
        with self._change:
            if not held:
                self._change.wait_for(lambda: self._free)
            elif not self._free or len(held) >= self._total // self._threads:
                return None
            held.append(self._free.pop())
            return held[-1]

    def release(self, held: list[T], resource: T) -> None:
        """Returns a held resource to the pool. The one used last is the next to be used."""
        with self._change:
            held.remove(resource)
            self._free.append(resource)
            self._change.notify()
