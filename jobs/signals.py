"""Turns SIGINT and SIGTERM into a request to stop, or ends the process."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mediamill.pipeline.coordinator.drain import Stop

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def end_on_signals(before_end: Callable[[int], None]) -> Iterator[None]:
    """While the block runs, the first signal ends the process at once, after `before_end`.

    For work that leaves nothing unfinished, and whose threads Python would wait for.
    before_end: is given the number of the signal.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        before_end(number)
        os._exit(128 + number)

    with _handled(handle):
        yield


@contextmanager
def stop_on_signals(on_stop: Callable[[bool], None]) -> Iterator[Stop]:
    """Yields a Stop that the first signal sets, after which it calls `on_stop`.

    on_stop: is told whether rows in flight are finished first. If there are none, and at the second
        signal, KeyboardInterrupt or SystemExit (128 + its number) is raised in the main thread.
    Outside the main thread, signal handlers stay as they are.
    """
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        if not stop.requested:
            stop.request(number)
            on_stop(stop.can_drain)
            if stop.can_drain:
                return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    with _handled(handle):
        yield stop


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
