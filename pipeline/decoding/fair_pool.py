"""A pool of a few resources that threads share fairly.

A thread that is alone may take all; when others come, it gets no more than its share of them.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class FairPool(Generic[T]):
    """The free resources, and the number of threads that share them."""

    def __init__(self, resources: Sequence[T]) -> None:
        self._free = list(resources)
        self._total = len(resources)
        self._leases = 0
        self._change = threading.Condition()

    @contextmanager
    def lease(self) -> Iterator["Lease[T]"]:
        """One thread's use of the pool; what it holds at the end is released."""
        with self._change:
            self._leases += 1
        lease = Lease(self)
        try:
            yield lease
        finally:
            for resource in list(lease.held):
                lease.release(resource)
            with self._change:
                self._leases -= 1

    def acquire(self, held: int) -> T | None:
        """One more for a thread that holds so many, None when it has its share; waits for the
        first one.
        """
        with self._change:
            if held == 0:
                self._change.wait_for(lambda: self._free)
            elif not self._free or held >= self._total // self._leases:
                return None
            return self._free.pop()

    def release(self, resource: T) -> None:
        """Returns a resource. The one used last is the next to be used."""
        with self._change:
            self._free.append(resource)
            self._change.notify()


class Lease(Generic[T]):
    """One thread's use of a FairPool. held: its resources."""

    def __init__(self, pool: FairPool[T]) -> None:
        self._pool = pool
        self.held: list[T] = []

    def acquire(self) -> T | None:
        """One more resource, None when this thread has its share; waits for the first one."""
        resource = self._pool.acquire(len(self.held))
        if resource is not None:
            self.held.append(resource)
        return resource

    def release(self, resource: T) -> None:
        """Returns a resource."""
        self.held.remove(resource)
        self._pool.release(resource)
