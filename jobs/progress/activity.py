"""Shows on a terminal that a command without a view of its own is at work."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mediamill.jobs.progress.layout import duration

_FIRST_S, _TICK_S = 0.3, 0.5


@contextmanager
def working(text: str) -> Iterator[None]:
    """Shows `text` and the time on stderr while the block runs, if that is a terminal.

    The line is removed at the end.
    """
    if not sys.stderr.isatty():
        yield
        return
    started, ended = time.monotonic(), threading.Event()

    def show() -> None:
        while not ended.wait(_TICK_S if time.monotonic() - started > _FIRST_S else _FIRST_S):
            seconds = duration(time.monotonic() - started)
            print(f"\r{text}  {seconds}\x1b[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True, name="activity")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
