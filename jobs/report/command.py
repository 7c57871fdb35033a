"""The command `mediamill report`: its options, and what it prints."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from mediamill.jobs.commands import new_parser, parse

_HELP = """\
The page is one file that loads nothing from elsewhere. It also works while a job is running.
PAGE is OUTPUT-report.html beside a local output, and in the current folder for others.

examples:
  mediamill report captions/
  mediamill report s3://bucket/captions/ captions.html --price 2.50 --open
  mediamill report captions/ --cards 1000

docs/report.md describes the page.
"""


def run_report(argv: Sequence[str]) -> int:
    """Parses the arguments, writes the page, says where it lies, and returns the exit code."""
    parser = new_parser(
        "report", "OUTPUT [PAGE.html] [options]", "Write a page that shows an output.", _HELP
    )
    parser.add_argument("output", help="output folder of a job")
    parser.add_argument("page", nargs="?", metavar="PAGE.html", help="file to write")
    parser.add_argument(
        "--cards", type=_count, default=200, metavar="N", help="rows to show (default: 200)"
    )
    parser.add_argument(
        "--price", type=_price, metavar="P", help="price of an hour of the job, for its cost"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parse(parser, argv)
    from mediamill.jobs.report.report import ReportOptions, default_page, write_report

    started = monotonic()
    page = Path(options.page) if options.page else default_page(options.output)
    report = write_report(options.output, page, ReportOptions(options.cards, options.price))
    seconds, statistics = monotonic() - started, report.statistics
    if options.open:
        open_page(page)
    if options.json:
        values = {
            "event": "report",
            "page": str(page),
            "rows": statistics.rows,
            "ok": statistics.ok,
            "errors": dict(statistics.errors.most_common()),
            "tokens": dict(statistics.tokens),
            "findings": dict(statistics.findings),
            "repeated_share": round(statistics.repeats.share, 6),
            "cards": report.shown,
            "seconds": round(seconds, 2),
        }
        print(json.dumps(values))
        return 0
    errors = statistics.errors.total()
    print(f"{statistics.rows:,} rows, {errors:,} errors; {report.shown:,} rows are on the page")
    print(f"page: {page} ({page.stat().st_size / 1e6:.1f} MB, in {seconds:.1f} s)")
    if not options.open:
        print(f"next: open it in a browser, or mediamill show {options.output} ID for one row")
    return 0


def open_page(page: Path) -> None:
    """Opens a page in the user's browser, if there is one."""
    import webbrowser

    webbrowser.open(page.resolve().as_uri())


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 5000:
        raise argparse.ArgumentTypeError(f"found {number}, expected 0 to 5000")
    return number


def _price(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}, expected a number from 0 on")
    return number
