"""Turns a run into an attended one: progress on a stream, and an end on Ctrl-C or SIGTERM."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from mediamill.jobs.progress import Reporter, reporter_for
from mediamill.jobs.signals import stop_on_signals
from mediamill.pipeline.coordinator.drain import Stop


@contextmanager
def run_with_progress(grace_s: float, stream: TextIO) -> Iterator[tuple[Reporter, Stop]]:
    """What a run is given to tell how it goes, and to be told to stop; it may then take grace_s."""
    reporter = reporter_for(stream)
    try:
        with stop_on_signals(lambda: reporter.stopping(grace_s)) as stop:
            yield reporter, stop
    finally:
        reporter.close()
