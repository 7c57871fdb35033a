"""Turns the arguments of commands that look elsewhere, at a cluster or an output, into options.

Nothing is asked or opened here.
"""

import argparse
from collections.abc import Sequence

from mediamill.jobs.commands import job_arguments, new_parser, parse


class ClusterGoneError(Exception):
    """A cluster that has answered does so no longer; its job may go on, or not."""


_SUBMIT_HELP = """\
The driver runs on the cluster: this machine may go away. Ctrl-C stops following, not the job. Paths
are those of the cluster's machines, and have to be absolute; better are URLs that all of them can
reach. The exit code is the job's own; 1 when the cluster no longer answers.

examples:
  mediamill submit nightly.yaml --address http://head:8265
  mediamill submit nightly.yaml --address http://head:8265 --detach --code output=s3://bucket/new/
"""
_LOOK_HELP = "The name is the one that `mediamill submit` has printed."
_HISTORY_HELP = "Newest last. A run without an end was killed."


def parse_submit(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """The options of `mediamill submit`, with the file as `config`, and the job's overrides.

    Raises SystemExit(2) after saying what is wrong.
    """
    parser = new_parser(
        "submit",
        "JOB.yaml --address http://HEAD:8265 [--name NAME] [--detach] [--code] [key=value ...]",
        "Run a job file on a Ray cluster elsewhere, through Ray's Jobs API.",
        _SUBMIT_HELP,
    )
    parser.add_argument("arguments", nargs="*", metavar="JOB.yaml [key=value ...]")
    _add_address(parser)
    parser.add_argument("--name", metavar="NAME", help="of the job on the cluster")
    parser.add_argument("--detach", action="store_true", help="print the name and do not follow")
    parser.add_argument(
        "--code", action="store_true", help="bring this program along; the cluster needs none"
    )
    options = parse(parser, argv)
    options.config, overrides = job_arguments(parser, options.arguments)
    return options, overrides


def parse_look(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """The options of `mediamill status`, `logs` and `stop`."""
    what = {
        "status": "Say how a submitted job stands.",
        "logs": "Follow what a submitted job prints; the exit code is the job's own.",
        "stop": "Let a submitted job finish what it has begun, and end.",
    }[command]
    parser = new_parser(command, "NAME --address http://HEAD:8265", what, _LOOK_HELP)
    parser.add_argument("name", metavar="NAME")
    _add_address(parser)
    if command != "logs":
        parser.add_argument("--json", action="store_true", help="print JSON")
    if command == "stop":
        parser.add_argument("--wait", action="store_true", help="until it has ended")
    return parse(parser, argv)


def parse_history(argv: Sequence[str]) -> argparse.Namespace:
    """The options of `mediamill history`."""
    parser = new_parser(
        "history", "OUTPUT [--json]", "List the runs that an output has seen.", _HISTORY_HELP
    )
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument("--json", action="store_true", help="one JSON object a run")
    return parse(parser, argv)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="of the cluster's dashboard; default: $RAY_API_SERVER_ADDRESS",
    )
