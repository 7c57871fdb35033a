"""The command `mediamill plan`: forecasts a job, and prints what it takes."""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mediamill.jobs.commands import JOB_HELP, new_parser
from mediamill.jobs.wrapped_job import parse_wrapped_job
from mediamill.schemas.job import JobConfig

if TYPE_CHECKING:
    from mediamill.pipeline.forecast.forecast import ForecastOptions
    from mediamill.pipeline.storage.storage import Place

_DESCRIPTION = (
    "Forecast a job without running it: rows, tokens, errors, time, cost and memory, each with an "
    "interval that holds the true value in 90 of 100 cases. Measures a random sample of the rows "
    "here; writes nothing to the output."
)
_HELP = """\
JOB is a job file, or a command that runs a job with its arguments. --plan with such a command does
the same. docs/plan.md says how the figures are found, and names the keys of --json.

examples:
  mediamill plan caption photos/ captions/ --model built-in
  mediamill plan job.yaml --gpu H200 --gpus 8 --price 2.50/h
  mediamill annotate videos.parquet timelines/ --model built-in --prompt "What happens?" --plan
  mediamill plan job.yaml --rate 40 --price 2.50/h --json
"""
_RATE = re.compile(r"([0-9.]+(?:e[0-9]+)?)\s*(rows|tokens|tok)?(?:/s)?", re.IGNORECASE)
_PRICE = re.compile(r"([0-9.]+)(?:/(?:gpu-|machine-)?h)?", re.IGNORECASE)


def run_plan(argv: Sequence[str]) -> int:
    """Parses the arguments, prints the forecast, and returns the exit code 0."""
    parser = _parser()
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if argv else 2
    options, rest = parser.parse_known_args(list(argv))
    job = _job(parser, rest)
    from mediamill.jobs.manifest import resolve_manifest
    from mediamill.pipeline.sources.detect import is_manifest

    planned = job
    if not is_manifest(job.manifest):
        planned = resolve_manifest(job, _manifest_place(job))
    from mediamill.jobs.plan_text import forecast_dict, forecast_text
    from mediamill.pipeline.forecast.forecast import forecast

    result = forecast(planned, _options(options), _say_phase)
    if planned is not job:  # notes on the manifest's files would be on our own
        result = replace(result, notes=())
    _end_phase()
    if options.json:
        print(json.dumps(forecast_dict(result)))
    else:
        print(forecast_text(result, _command(rest)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("plan", "JOB.yaml|COMMAND ... [options]", _DESCRIPTION, _HELP)
    add = parser.add_argument
    add(
        "--gpu", metavar="NAME", help="forecast for such GPUs: H200, H100, A100-80GB, L40S, L4, ..."
    )
    add("--gpus", type=_count, default=1, metavar="N", help="their number (default: 1)")
    add("--price", type=_price, metavar="X/h", help="of an hour: of a GPU, else of this machine")
    add("--rate", type=_rate, metavar="N", help="of the whole job: 40 (rows/s), or 9000tokens/s")
    add("--run", type=int, metavar="N", help="rows that the model answers now (default: enough)")
    add("--seconds", type=float, default=15.0, metavar="S", help="to measure rows (default: 15)")
    add("--again", action="store_true", help="measure again what an earlier plan has measured")
    add("--json", action="store_true", help="print the forecast as one JSON object")
    add("--plan", action="store_true", help=argparse.SUPPRESS)
    return parser


def _job(parser: argparse.ArgumentParser, rest: Sequence[str]) -> JobConfig:
    options, job = parse_wrapped_job(parser, rest)
    names = ("--limit", "--sample", "--retry-errors")
    given = [name for name in names if getattr(options, name[2:].replace("-", "_"))]
    if given:
        print(
            f"note: {', '.join(given)}: the forecast is of all rows that the output does not have",
            file=sys.stderr,
        )
    return job


def _options(options: argparse.Namespace) -> "ForecastOptions":
    from mediamill.pipeline.forecast.forecast import ForecastOptions

    rows_s, tokens_s = options.rate or (None, None)
    return ForecastOptions(
        options.seconds,
        options.run,
        options.gpu,
        options.gpus,
        rows_s,
        tokens_s,
        options.price,
        options.again,
    )


def _manifest_place(job: JobConfig) -> "Place":
    """Where the manifest of a source is made; begins with the one that the output has."""
    from mediamill.jobs.planned_manifest import hand_over, planned_place
    from mediamill.pipeline.sources.job_manifest import job_manifest

    place = planned_place(job)
    hand_over(job_manifest(job), place)
    return place


def _command(rest: Sequence[str]) -> str:
    """The command that runs the job."""
    words = list(rest) if rest[0] in (*JOB_HELP, "run") else ["run", *rest]
    return shlex.join(["mediamill", *words])


def _say_phase(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text} ...\033[K", end="", file=sys.stderr, flush=True)


def _end_phase() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}, expected at least 1")
    return number


def _price(text: str) -> float:
    match = _PRICE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a price such as 2.50/h")
    return float(match[1])


def _rate(text: str) -> tuple[float | None, float | None]:
    match = _RATE.fullmatch(text.strip())
    if match is None or not float(match[1]) > 0:
        raise argparse.ArgumentTypeError(f"found '{text}', expected 40 (rows/s) or 9000tokens/s")
    number = float(match[1])
    return (number, None) if (match[2] or "rows") == "rows" else (None, number)
