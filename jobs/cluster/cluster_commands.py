"""Parsers of the commands submit, status, logs and stop, and of history."""

import argparse
import re
from collections.abc import Sequence

from mediamill.jobs.commands import job_arguments, new_parser, parse


class ClusterGoneError(Exception):
    """The cluster stopped answering. Its job may still run."""


_SUBMIT_HELP = """\
The job runs on the cluster, even if this machine is switched off. Ctrl-C ends the view here, not
the job: mediamill stop NAME does. The head needs the package ray[default], and mediamill in the
environment that runs Ray, or --code. Paths are those of the cluster's machines and must be
absolute; URLs that every machine can read are better. The exit code is the job's own, or 1 when the
cluster stops answering.

examples:
  mediamill submit nightly.yaml --address http://head:8265
  mediamill submit nightly.yaml --address http://head:8265 --detach --code output=s3://bucket/new/
"""
_JOB_HELP = """\
NAME is what mediamill submit printed; mediamill status without NAME lists the jobs.

examples:
  mediamill {command} nightly-2 --address http://head:8265
  mediamill status --address http://head:8265
"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HISTORY_HELP = "Oldest first. A run without an end was killed."


def parse_submit(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """Parses `mediamill submit`. Returns and raises the same as `parse_run`."""
    parser = new_parser(
        "submit",
        "JOB.yaml --address http://HEAD:8265 [options] [key=value ...]",
        "Run a job file on a remote Ray cluster, through Ray's Jobs API.",
        _SUBMIT_HELP,
    )
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)  # the usage has them
    _add_address(parser)
    parser.add_argument("--name", metavar="NAME", type=_name, help="name of the job on the cluster")
    parser.add_argument("--detach", action="store_true", help="print the name and return at once")
    parser.add_argument(
        "--code", action="store_true", help="upload Mediamill, for a cluster that does not have it"
    )
    options = parse(parser, argv)
    options.config, overrides = job_arguments(parser, options.arguments)
    return options, overrides


def parse_job_command(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses `mediamill status`, `logs` and `stop`."""
    description = {
        "status": "Show a submitted job, or list the jobs.",
        "logs": "Follow the output of a submitted job; the exit code is the job's own.",
        "stop": "Stop a submitted job after its rows in flight.",
    }[command]
    name = "[NAME]" if command == "status" else "NAME"
    usage = f"{name} --address http://HEAD:8265"
    parser = new_parser(command, usage, description, _JOB_HELP.format(command=command))
    if command == "status":
        parser.add_argument("name", metavar="NAME", nargs="?")
    else:
        parser.add_argument("name", metavar="NAME")
    _add_address(parser)
    if command != "logs":
        parser.add_argument("--json", action="store_true", help="print JSON, one object a job")
    if command == "stop":
        parser.add_argument("--wait", action="store_true", help="wait until it has ended")
    return parse(parser, argv)


def parse_history(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `mediamill history`."""
    parser = new_parser("history", "OUTPUT [--json]", "List the runs of an output.", _HISTORY_HELP)
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument("--json", action="store_true", help="one JSON object a run")
    return parse(parser, argv)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="URL of the cluster's dashboard; default: $RAY_API_SERVER_ADDRESS, or a URL in "
        "$RAY_ADDRESS",
    )


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected letters, digits, '.', '_' and '-', at most 100"
        )
    return text
