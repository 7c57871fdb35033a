"""What every job run from the command line has: progress, a stop on Ctrl-C, and a summary."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mediamill.jobs.progress import Reporter, quiet_logs, reporter_for
from mediamill.jobs.signals import stop_on_signals
from mediamill.pipeline.coordinator.drain import Stop


@contextmanager
def run_with_progress(grace_s: float) -> Iterator[tuple[Reporter, Stop]]:
    """Yields a progress reporter on stderr, and a Stop that Ctrl-C and SIGTERM set.

    Keeps Ray Data's informational logs off the terminal.
    """
    quiet_logs()
    reporter = reporter_for(sys.stderr)
    try:
        with stop_on_signals(lambda: reporter.stopping(grace_s)) as stop:
            yield reporter, stop
    finally:
        reporter.close()


def print_summary(values: Mapping[str, object], text: str, as_json: bool) -> None:
    """Prints the summary of a job on stdout: `values` as one JSON object, or else `text`."""
    print(json.dumps(values) if as_json else text, flush=True)
