"""Gives a run progress output and signal handling."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from mediamill.jobs.progress import Reporter, reporter_for
from mediamill.jobs.signals import stop_on_signals
from mediamill.pipeline.coordinator.drain import Stop


@contextmanager
def run_with_progress(grace_s: float, stream: TextIO) -> Iterator[tuple[Reporter, Stop]]:
    """Yields a progress reporter on `stream`, and a Stop that Ctrl-C and SIGTERM set."""
    reporter = reporter_for(stream)
    try:
        with stop_on_signals(lambda: reporter.stopping(grace_s)) as stop:
            yield reporter, stop
    finally:
        reporter.close()
