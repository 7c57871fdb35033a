"""What every job run from the command line has: progress, a stop on Ctrl-C, and a summary."""

import json
import logging
import os
import shlex
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mediamill.jobs.progress.layout import Title
from mediamill.jobs.progress.reporter import JsonReporter, Reporter
from mediamill.jobs.progress.terminal import PlainReporter, TerminalReporter, is_dumb
from mediamill.jobs.signals import end_on_signals, stop_on_signals
from mediamill.pipeline.coordinator.drain import Stop

_CHECKED = "nothing had begun; to go on, run the same command again\n"
_TITLE = Title("mediamill")
_MIN_LEVELS = {
    "ray.data.dataset": logging.WARNING,
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # warns that its own bars are off
}


@contextmanager
def run_with_progress(
    grace_s: float, title: Title = _TITLE, verbose: bool = False
) -> Iterator[tuple[Reporter, Stop]]:
    """Yields a progress reporter on stderr, and a Stop that Ctrl-C and SIGTERM set.

    See `reporting` and `stopping`.
    """
    with reporting(title, verbose) as reporter, stopping(reporter, grace_s) as stop:
        yield reporter, stop


@contextmanager
def reporting(title: Title, verbose: bool = False) -> Iterator[Reporter]:
    """Yields a progress reporter on stderr.

    Unless `verbose`, nothing else reaches stderr meanwhile: not the messages of Ray's core, nor
    the warnings of libraries.
    """
    if not verbose:
        _quiet_logs()
    sys.stderr.write("")  # nothing is left of the first line, see jobs/start.py
    with _own_stderr(verbose) as stream:
        reporter = reporter_for(stream, title)
        try:
            yield reporter
        finally:
            end(reporter)


@contextmanager
def checking(reporter: Reporter) -> Iterator[None]:
    """While the block runs, which changes nothing, Ctrl-C and SIGTERM end the process at once."""

    def tell(number: int) -> None:
        end(reporter)
        reporter.write(f"{'interrupted' if number == signal.SIGINT else 'terminated'}: {_CHECKED}")

    with end_on_signals(tell):
        yield


@contextmanager
def stopping(reporter: Reporter, grace_s: float) -> Iterator[Stop]:
    """Yields a Stop that Ctrl-C and SIGTERM set; while no rows are in flight they end the run."""

    def tell(can_drain: bool) -> None:
        reporter.stopping(grace_s if can_drain else None)

    with stop_on_signals(tell) as stop:
        yield stop


def end(reporter: Reporter) -> None:
    """Ends the report, and its thread."""
    reporter.close()
    if isinstance(reporter, TerminalReporter):
        reporter.end_view()


def reporter_for(stream: TextIO, title: Title) -> Reporter:
    """Returns a reporter for a terminal that can be rewritten or not, or one that writes JSON."""
    if not stream.isatty():
        return JsonReporter(stream)
    return PlainReporter(stream) if is_dumb(stream) else TerminalReporter(stream, title)


def print_summary(values: Mapping[str, object], text: str, as_json: bool) -> None:
    """Prints the summary of a job on stdout: `values` as one JSON object, or else `text`."""
    if not as_json and sys.stdout.isatty():
        text = _wrapped(text, shutil.get_terminal_size().columns)
    print(json.dumps(values) if as_json else text, flush=True)


def _wrapped(text: str, columns: int) -> str:
    """Returns the text with its lines broken between words, but those that hold a command."""
    return "\n".join(
        line
        if ": mediamill " in line
        else textwrap.fill(
            line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for line in text.splitlines()
    )


def next_commands(output: str, errors: int) -> str:
    """Returns lines that say how to look at an output, and what to do about its error rows."""
    path = shlex.quote(output)
    lines = [f"look at it: mediamill report {path}"]
    if errors:
        lines.append(f"try its errors again: mediamill retry {path}")
    return "\n".join(lines)


@contextmanager
def _own_stderr(verbose: bool) -> Iterator[TextIO]:
    """Yields a stream to this process's stderr, of which nobody else has a descriptor."""
    if verbose or not _is_stderr():
        yield sys.stderr
        return
    sys.stderr.flush()
    own = os.dup(2)
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), 2)
    stream = os.fdopen(own, "w", encoding=sys.stderr.encoding, errors="backslashreplace")
    try:
        yield stream
    finally:
        sys.stderr.flush()
        stream.flush()
        os.dup2(own, 2)
        stream.close()


def _is_stderr() -> bool:
    try:
        return sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False


def _quiet_logs() -> None:
    """Hides Ray's warnings and informational logs; Ray's log files still have the logs.

    Ray Data configures its loggers again when it is imported, but keeps their filters. Its console
    handler skips a record that has the attribute `hide`. The warnings are also those of a thread
    of Ray Data's that goes on for a moment after a run.
    """
    warnings.filterwarnings("ignore", module=r"ray\.")
    for name, level in _MIN_LEVELS.items():
        logging.getLogger(name).addFilter(_HideBelow(level))


@dataclass(frozen=True)
class _HideBelow:
    level: int

    def filter(self, record: logging.LogRecord) -> bool:
        record.hide = getattr(record, "hide", False) or record.levelno < self.level
        return True
