"""The command `mediamill retry`: does the error rows of an output again."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from mediamill.jobs.commands import EXIT_CODES, job_parser, parse, paths_and_pairs
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig, load_job, parse_overrides

if TYPE_CHECKING:
    from mediamill.pipeline.storage.storage import Place

_HELP = f"""\
The job is found in the output. key=value arguments change keys for these rows only, such as
image.max_pixels=50176 or generation.temperature=0.7. A row that succeeds replaces its error row.
Rows that fail again as long as nothing changes are left out, unless --where chooses them.
docs/retry.md says more.

examples:
  mediamill retry captions/
  mediamill retry captions/ --where "error_code == 'fetch_timeout'" limits.fetch_timeout_s=120
  mediamill retry captions/ --where "error_code == 'context_too_long'" image.max_pixels=50176

{EXIT_CODES}
"""


def run_retry(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Parses the arguments, retries, prints the summary, and returns the exit code."""
    options, overrides = _parse(argv)
    from mediamill.pipeline.ray_cluster.cluster_address import cluster_address

    cluster_address(options.address, environ)  # for its JobError
    from mediamill.pipeline.retry.options import Retry

    job = _find_job(options, overrides)
    retry = Retry(options.where, only=True, changed=overrides)
    from mediamill.pipeline.manifest.selection import RowChoice

    choice = RowChoice(options.limit, options.sample, job.seed)
    if job.job == "annotate":
        from mediamill.jobs.annotate import annotate

        if not choice.is_all:
            name = "--limit" if options.limit is not None else "--sample"
            raise JobError(
                f"{name}: found the retry of a job annotate, which does all of a video's windows, "
                "expected --where, such as --where \"video_id == 'x'\""
            )
        return annotate(job, options.json, options.address, retry).exit_code
    from mediamill.jobs.per_row import run_per_row

    arguments = (job, options.json, options.address, retry, choice, options.verbose)
    return run_per_row(*arguments).exit_code


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    parser = job_parser(
        "retry", "OUTPUT [options] [key=value ...]", "Do the error rows of an output again.", _HELP
    )
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)  # the usage has them
    parser.add_argument(
        "--where", metavar="CONDITION", help="only error rows like these, such as id == 'x'"
    )
    parser.add_argument(
        "--config", metavar="JOB.yaml", help="the job, if the output does not have it"
    )
    options = parse(parser, argv)
    paths, pairs = paths_and_pairs(parser, options.arguments)
    if len(paths) != 1:
        parser.error(f"expected one output, found {', '.join(paths) or 'none'}")
    options.output = paths[0]
    return options, parse_overrides(pairs)


def _find_job(options: argparse.Namespace, changed: dict[str, object]) -> JobConfig:
    """Returns the job of the output, with the changed keys. Raises JobError."""
    from mediamill.pipeline.retry.job_note import ANNOTATION, JOB, job_of, read_job
    from mediamill.pipeline.storage import storage

    output = storage.resolve(options.output)
    shown = storage.redact(output.url)
    if options.config is not None:
        from mediamill.jobs.manifest import resolve_manifest

        job = load_job(options.config, {**changed, "output": output.url})
        return resolve_manifest(job)
    if _is_step(output):
        raise JobError(f"{shown}: found a step of a job annotate, expected the folder above it")
    note = read_job(output, JOB) or read_job(output / "_split", ANNOTATION)
    if note is None:
        raise JobError(
            f"{shown}: found no job in it, expected an output: for one of an older version of "
            "Mediamill, give the job file with --config JOB.yaml"
        )
    job = job_of(note, shown, {**changed, "output": output.url})
    # Relative addresses of rows are relative to the folder that the job was started in.
    try:
        os.chdir(note.folder)
    except OSError:
        print(f"note: {note.folder}, where the job was started, is not there", file=sys.stderr)
    return job


def _is_step(output: "Place") -> bool:
    from mediamill.pipeline.annotate.window_columns import STEPS
    from mediamill.pipeline.retry.job_note import ANNOTATION, read_job
    from mediamill.pipeline.storage import storage

    folder, name = storage.split(output)
    with suppress(OSError):
        return name in STEPS and read_job(folder / "_split", ANNOTATION) is not None
    return False
