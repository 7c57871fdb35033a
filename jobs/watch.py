"""The command `mediamill watch`: shows the progress of a run from another terminal or machine."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from mediamill.jobs.commands import new_parser, parse

if TYPE_CHECKING:
    from mediamill.jobs.progress.terminal import Screen
    from mediamill.pipeline.coordinator.run_status import StoredStatus
    from mediamill.pipeline.storage.storage import Place
    from mediamill.schemas.progress import Progress

_POLL_S = 2.0
_BEGIN_S = 60.0  # that a run may take to its first news, while somebody waits for it
_SILENT_S = 30.0  # without news from a run: it may have been killed
_GONE_S = 120.0
_HELP = """\
A run leaves its progress beside its output every few seconds. Ctrl-C ends only this command.

exit codes: 0 the run has ended, or --once; 1 it was killed, or failed; 2 there is no run

examples:
  mediamill watch captions/
  mediamill watch s3://bucket/captions/ --json --once
"""


def watch_command(argv: Sequence[str]) -> int:
    """Parses the arguments, shows the run until it ends, and returns the exit code.

    Raises JobError when the output has no run.
    """
    options = _parse(argv)
    from mediamill.pipeline.storage import storage

    return _watch(storage.resolve(options.output), options)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = new_parser(
        "watch",
        "OUTPUT [--once] [--json]",
        "Show the progress of the run that works on an output.",
        _HELP,
    )
    parser.add_argument("output", metavar="OUTPUT", help="output folder of a job")
    parser.add_argument("--once", action="store_true", help="show it once, and end")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parse(parser, argv)


def _watch(output: "Place", options: argparse.Namespace) -> int:
    from mediamill.jobs.progress.terminal import Screen, is_dumb
    from mediamill.pipeline.annotate.window_columns import STEPS

    sys.stderr.write("")  # nothing is left of the first line, see jobs/start.py
    rewrites = not (options.json or options.once) and sys.stdout.isatty()
    screen = Screen(sys.stdout) if rewrites and not is_dumb(sys.stdout) else None
    seen: tuple[str, int, str | None] | None = None
    printed: Progress | None = None
    news_at = time.monotonic()
    try:
        while True:
            status = _read(output, STEPS)
            if status is None:
                waited_s = time.monotonic() - news_at
                if options.once or not sys.stdout.isatty() or waited_s > _BEGIN_S:
                    raise _no_run(output)
                if screen is not None:
                    _show_waiting(screen, options.output)
                time.sleep(_POLL_S)
                continue
            news = (status.run, status.beat, status.end)
            if news != seen:
                seen, news_at = news, time.monotonic()
                shown = replace(status.progress, seconds=0.0)
                if screen is None and (shown != printed or status.end is not None):
                    printed = shown
                    _print(status, options)
            silent_s = time.monotonic() - news_at
            if screen is not None:
                screen.resized()
                _show(screen, status, silent_s, options.output)
            ended = _ended(status, silent_s)
            if ended is not None or options.once:
                if screen is not None:
                    screen.hide()
                return _tell_end(status, ended, options)
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        if screen is not None:
            screen.hide()
        return 130


def _read(output: "Place", steps: Sequence[str]) -> "StoredStatus | None":
    from mediamill.pipeline.coordinator.run_status import stored_status
    from mediamill.pipeline.storage import storage
    from mediamill.schemas.errors import JobError

    try:
        return stored_status(output, steps)
    except OSError as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{storage.redact(output.url)}: cannot be read: {reason}") from error


def _no_run(output: "Place") -> Exception:
    from mediamill.pipeline.storage import storage
    from mediamill.schemas.errors import JobError

    shown = storage.redact(output.url)
    return JobError(
        f"{shown}: found no run that tells its progress, expected the output of a job that runs or "
        f"has run: mediamill history {shown} lists the runs"
    )


def _ended(status: "StoredStatus", silent_s: float) -> str | None:
    """Returns how the run has ended; None if it may be at work."""
    if status.end is not None:
        return status.end
    if silent_s > _GONE_S or (not status.held and time.time() - status.at > _SILENT_S):
        return "killed"
    return None


def _show(screen: "Screen", status: "StoredStatus", silent_s: float, output: str) -> None:
    from mediamill.jobs.progress.layout import Field, Title, cut, view, with_time

    title = Title("watch", output, status.folder)
    progress = with_time(status.progress, 0.0 if status.end else silent_s)
    lines = view(progress, title, screen.columns, screen.height - 1, screen.symbols)
    if silent_s > _SILENT_S:
        text = f"no news for {silent_s:.0f} s: the run may have been killed"
        lines.append([Field(cut(text, screen.columns), 0, "bad")])
    screen.show(lines)


def _show_waiting(screen: "Screen", output: str) -> None:
    from mediamill.jobs.progress.layout import Field, cut

    text = f"{output}: waiting for a run to tell its progress; Ctrl-C ends this"
    screen.show([[Field(cut(text, screen.columns), 0)]])


def _print(status: "StoredStatus", options: argparse.Namespace) -> None:
    if options.json:
        step = {"step": status.folder} if status.folder else {}
        values = {"event": "progress", "run": status.run, **step, **asdict(status.progress)}
        print(json.dumps({**values, "end": status.end}), flush=True)
        return
    from mediamill.jobs.progress.layout import Title, text_of, view

    width = 100 if options.once else 200
    lines = view(status.progress, Title("watch", options.output, status.folder), width, 40)
    print("\n".join(text_of(line) for line in lines), flush=True)


def _tell_end(status: "StoredStatus", ended: str | None, options: argparse.Namespace) -> int:
    if ended is None:
        return 0
    if not options.json:
        word = "was killed" if ended == "killed" else f"ended: {ended}"
        print(f"run {status.run} {word}; mediamill history {options.output} lists all runs")
    elif ended == "killed":
        print(json.dumps({"event": "killed", "run": status.run}), flush=True)
    good = ended == "finished" or ended.startswith("stopped") or options.once
    return 0 if good else 1
