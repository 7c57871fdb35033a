"""Says that the head of the Ray cluster is gone, before Ray ends the process without a word."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mediamill.jobs.interactive import end
from mediamill.jobs.progress.reporter import Reporter
from mediamill.pipeline.ray_cluster.cluster_address import is_reachable

_POLL_S = 5.0
_SILENT_S = 40.0  # Ray's core ends the process after 60
_FAILED = 1
_SENTENCE = (
    "error: the head of the Ray cluster at {address} is gone; when it runs again, run the same "
    "command again to go on: rows that are finished are kept\n"
)


@contextmanager
def ending_without_head(reporter: Reporter) -> Iterator[None]:
    """While the block runs, ends the process with a sentence once the head does not answer."""
    is_over = threading.Event()

    def watch() -> None:
        silent_since: float | None = None
        while not is_over.wait(_POLL_S):
            address = _head_address()
            if address is None or is_reachable(address):
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _SILENT_S:
                end(reporter)
                reporter.write(_SENTENCE.format(address=address))
                os._exit(_FAILED)

    threading.Thread(target=watch, daemon=True, name="head watch").start()
    try:
        yield
    finally:
        is_over.set()


def _head_address() -> str | None:
    """Returns HOST:PORT of the head that this process is connected to."""
    ray = sys.modules.get("ray")
    if ray is None:
        return None
    with suppress(Exception):  # Ray may just start or end
        if ray.is_initialized():
            return str(ray.get_runtime_context().gcs_address)
    return None
