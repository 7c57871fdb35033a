"""The command `mediamill preview`: a few rows of a job, without its output."""

import argparse
import atexit
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mediamill.jobs.commands import JOB_HELP, new_parser
from mediamill.jobs.wrapped_job import parse_wrapped_job
from mediamill.schemas.job import JobConfig

if TYPE_CHECKING:
    from mediamill.pipeline.preview.preview import Preview

_DESCRIPTION = (
    "Try a job on a few rows: what the model sees, the exact prompt, the answer, tokens and "
    "seconds. The rows go through the job's real stages in this process. The output is not touched."
)
_HELP = """\
JOB is a job file, or a command that runs a job with its arguments. --preview N with such a command
does the same. The page lies in preview.html of the current folder, and replaces an earlier one.

examples:
  mediamill preview caption photos/ captions/ --model built-in
  mediamill preview job.yaml --rows 20 --open
  mediamill caption photos/ captions/ --model built-in --prompt "What is this?" --preview 4
  mediamill preview job.yaml image.max_pixels=200000 --price 2.50/h --json

docs/preview.md describes it.
"""
_PRICE = re.compile(r"([0-9.]+)(?:/h)?", re.IGNORECASE)
_PAGE = "preview.html"
_MOST = 64
_TERMINATED = 143  # exit code after SIGTERM


def run_preview(argv: Sequence[str], environment: Mapping[str, str], is_terminal: bool) -> int:
    """Parses the arguments, shows the rows, and returns the exit code: 3 if some are errors.

    environment: variables that tell what the terminal can show.
    """
    parser = _parser()
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if argv else 2
    options, rest = parser.parse_known_args(list(argv))
    phases = _Phases()
    try:
        phases.say("checking the job")
        _, job = parse_wrapped_job(parser, rest)
        return _show(job, options, rest, phases, environment, is_terminal)
    except KeyboardInterrupt:
        phases.end()
        print("interrupted; the output was not touched, and no page was written", file=sys.stderr)
        return _leave(130)
    except SystemExit as stop:
        if stop.code != _TERMINATED:
            raise
        phases.end()
        print("terminated; the output was not touched, and no page was written", file=sys.stderr)
        return _leave(_TERMINATED)


def _show(
    job: JobConfig,
    options: argparse.Namespace,
    rest: Sequence[str],
    phases: "_Phases",
    environment: Mapping[str, str],
    is_terminal: bool,
) -> int:
    from mediamill.jobs.planned_manifest import hand_over, planned_place
    from mediamill.pipeline.sources.detect import is_manifest

    source = job.manifest
    if not is_manifest(job.manifest):
        from mediamill.jobs.manifest import resolve_manifest
        from mediamill.pipeline.sources.job_manifest import job_manifest

        phases.say("listing the source")
        place = planned_place(job)
        with suppress(Exception):  # an output that cannot be read does not matter here
            hand_over(job_manifest(job), place)
        phases.end()
        # Where the output lies does not matter either.
        job = resolve_manifest(job.model_copy(update={"output": place.url + "-none"}), place)
    from mediamill.pipeline.preview.preview import preview

    phases.say("loading libraries")
    result = preview(job, options.preview, phases.say)
    if job.manifest != source:  # notes on the made manifest's files would be on our own
        result = replace(result, notes=())
    phases.end()
    page = None
    if options.page is not None:
        from mediamill.jobs.preview.page import write_preview

        page = Path(options.page)
        write_preview(result, source, page, options.price)
    if options.json:
        from mediamill.jobs.preview.text import preview_dict

        values = preview_dict(result, options.price) | {"page": page and str(page)}
        print(json.dumps(values, ensure_ascii=False, default=str))
    else:
        _print(result, options, page, rest, environment, is_terminal)
    if page is not None and options.open:
        from mediamill.jobs.report.command import open_page

        open_page(page)
    errors = sum(row.values["status"] == "error" for row in result.rows)
    return 3 if errors else 0


def _print(
    result: "Preview",
    options: argparse.Namespace,
    page: Path | None,
    rest: Sequence[str],
    environment: Mapping[str, str],
    is_terminal: bool,
) -> None:
    from mediamill.jobs.preview.text import preview_lines, summary_lines
    from mediamill.jobs.show.terminal_pictures import protocol_of

    protocol = protocol_of(environment, is_terminal) if options.pictures else "none"
    for line in preview_lines(result, protocol):
        print(line)
    print()
    for line in summary_lines(result, options.price):
        print(line)
    if page is not None:
        print(f"page: {page}")
    print("the output was not touched")
    print(f"next: {shlex.join(_run_command(rest))}")


def _run_command(rest: Sequence[str]) -> list[str]:
    words = list(rest) if rest and rest[0] in (*JOB_HELP, "run") else ["run", *rest]
    return ["mediamill", *words]


def _leave(code: int) -> int:
    """Ends this process at once: threads may be in the engine, and decoders at work."""
    with suppress(Exception):
        atexit._run_exitfuncs()  # they remove temporary files
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Phases:
    """Says what is done now: on a terminal in a line that changes, else a line each."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._last = ""

    def say(self, text: str) -> None:
        """Shows a phase, with the seconds since the start."""
        if text == self._last:
            return
        self._last = text
        seconds = time.monotonic() - self._started
        line = f"{seconds:5.1f} s  {text} ..."
        if self._is_terminal:
            print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Removes the line."""
        if self._is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("preview", "JOB.yaml|COMMAND ... [options]", _DESCRIPTION, _HELP)
    add = parser.add_argument
    add("--rows", "--preview", dest="preview", type=_rows, default=8, metavar="N",
        help=f"rows to try, up to {_MOST} (default: 8)")  # fmt: skip
    add("--price", type=_price, metavar="X/h", help="of an hour of this machine, for the cost")
    add("--page", default=_PAGE, metavar="PAGE.html", help=f"file to write (default: {_PAGE})")
    add("--no-page", dest="page", action="store_const", const=None, help="write no page")
    add("--open", action="store_true", help="open the page in a browser")
    add(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw pictures on the terminal, if it can",
    )
    add("--json", action="store_true", help="print the rows as one JSON object")
    return parser


def _rows(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"found {number}, expected 1 to {_MOST}")
    return number


def _price(text: str) -> float:
    match = _PRICE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a price such as 2.50/h")
    return float(match[1])
