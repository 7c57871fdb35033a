"""Turns SIGINT and SIGTERM into the wish that a run ends; a second one ends it at once.

What a run does about the wish is not known here.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mediamill.pipeline.coordinator.drain import Stop

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(say: Callable[[], None]) -> Iterator[Stop]:
    """A Stop that the first signal asks for; `say` tells the user that it was heard.

    The second one raises KeyboardInterrupt or SystemExit (128 + its number) in the main thread.
    Elsewhere than in the main thread, signals stay as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def hear(number: int, _frame: FrameType | None) -> None:
        if not stop.requested:
            stop.request(number)
            say()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(128 + number)

    before = {number: signal.signal(number, hear) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
