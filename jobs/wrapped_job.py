"""Parses the job of a command that takes a job file, or another command with its arguments."""

import argparse
from collections.abc import Sequence

from mediamill.jobs.commands import JOB_HELP, parse_job, parse_run
from mediamill.schemas.job import JobConfig, load_job


def parse_wrapped_job(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, JobConfig]:
    """Returns the options and the job of `JOB.yaml ...`, `run JOB.yaml ...` or `caption ...`.

    Raises JobError, and SystemExit(2) after it has printed a usage error of `parser`.
    """
    if not arguments:
        parser.error("expected a job file or a command such as caption with its arguments")
    kind, *rest = arguments
    if kind in JOB_HELP:
        options, overrides = parse_job(kind, rest)
        return options, load_job(options.config, overrides, job=kind)
    options, overrides = parse_run(rest if kind == "run" else arguments)
    return options, load_job(options.config, overrides)
