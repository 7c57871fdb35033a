"""The command `mediamill diff`: what differs between two outputs."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mediamill.jobs.commands import new_parser, parse

if TYPE_CHECKING:
    from mediamill.pipeline.inspect.output import Output

_DESCRIPTION = (
    "Compare two outputs, row by row by id: settings, rows, statuses, texts, lengths, "
    "log-probabilities, and what the model saw."
)
_HELP = """\
A and B are outputs of jobs of one kind, on disk or in a bucket; also while jobs write them. The
exit code is 0 whether they differ or not; with --exit-code it is 1 if they differ.

examples:
  mediamill diff captions/ captions-new/
  mediamill diff s3://bucket/monday/ s3://bucket/tuesday/ --page diff.html
  mediamill diff captions/ captions-new/ --md >> comment.md
  mediamill diff captions/ captions-new/ --json --exit-code

docs/diff.md describes it.
"""
_PAGE_SAMPLES = 100


def run_diff(argv: Sequence[str], environment: Mapping[str, str], is_terminal: bool) -> int:
    """Parses the arguments, compares, and returns the exit code.

    environment: variables that tell whether the terminal has colours.
    """
    try:
        return _diff(_parse(argv), environment, is_terminal)
    except KeyboardInterrupt:
        _say_phase("")
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130


def _diff(options: argparse.Namespace, environment: Mapping[str, str], is_terminal: bool) -> int:
    from mediamill.jobs.diff.facts import difference_dict
    from mediamill.jobs.diff.samples import read_samples
    from mediamill.jobs.diff.text import lines, markdown
    from mediamill.pipeline.diff.compare import compare
    from mediamill.pipeline.inspect.output import Output

    started = time.monotonic()
    outputs = Output(options.a), Output(options.b)
    if options.page:
        from mediamill.jobs.page.page import check_place

        check_place(Path(options.page))  # before the rows are read
    names = _name(outputs[0]), _name(outputs[1])
    wanted = max(options.samples, _PAGE_SAMPLES if options.page else 0)
    difference = compare(*outputs, wanted, _say_phase)
    samples = read_samples(*outputs, difference)
    _say_phase("")
    if options.page:
        from mediamill.jobs.diff.page import write_diff

        write_diff(names, difference, samples, Path(options.page))
    if options.json:
        values = difference_dict(difference, samples)
        values |= {"a": outputs[0].url, "b": outputs[1].url, "page": options.page}
        values["seconds"] = round(time.monotonic() - started, 2)
        values["working"] = [output.working for output in outputs]
        print(json.dumps(values, ensure_ascii=False, default=str))
    elif options.md:
        for line in markdown(names, difference, samples, options.samples):
            print(line)
    else:
        for letter, output in zip("AB", outputs, strict=True):
            if output.working:
                print(f"{letter} is being written by run {output.working}: it is compared as it is")
        coloured = is_terminal and not environment.get("NO_COLOR")
        coloured = coloured and environment.get("TERM") != "dumb"
        for line in lines(names, difference, samples, options.samples, coloured):
            print(line)
        _print_next(options, difference.differs)
    return 1 if options.exit_code and difference.differs else 0


def _name(output: "Output") -> str:
    """The output's address, and the checkpoint that its first row names."""
    from mediamill.schemas.columns import ID, MODEL

    row = output.rows([(0, 0)], [ID, MODEL]).get((0, 0), {})
    return f"{output.url} ({row[MODEL]})" if row.get(MODEL) else output.url


def _print_next(options: argparse.Namespace, differs: bool) -> None:
    if options.page:
        print(f"page: {options.page}")
        print("next: open it in a browser")
    elif differs:
        words = ["mediamill", "diff", options.a, options.b, "--page", "diff.html"]
        print(f"next: {shlex.join(words)} shows rows with their pictures")


def _say_phase(text: str) -> None:
    if sys.stderr.isatty():
        shown = f"{text} ..." if text else ""
        print(f"\r{shown}\033[K", end="", file=sys.stderr, flush=True)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = new_parser("diff", "A B [options]", _DESCRIPTION, _HELP)
    add = parser.add_argument
    add("a", metavar="A", help="an output, such as the older one")
    add("b", metavar="B", help="the output to compare with it")
    add(
        "--samples",
        type=_count,
        default=5,
        metavar="N",
        help="changed answers to show (default: 5)",
    )
    add("--page", metavar="PAGE.html", help="also write a page with pictures of such rows")
    add("--md", action="store_true", help="print Markdown, for a pull request")
    add("--json", action="store_true", help="print one JSON object")
    add("--exit-code", action="store_true", help="exit with 1 if the outputs differ")
    options = parse(parser, argv)
    if options.md and options.json:
        parser.error("found --md and --json, expected one of them")
    return options


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"found {number}, expected 0 to 1000")
    return number
