"""The command line: parses arguments, runs the command, and returns its exit code.

Exit codes: 0 no new error rows; 3 finished with new error rows; 2 wrong usage or job; 1 failed;
130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
"""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

from mediamill.jobs.cluster.cluster_commands import ClusterGoneError, parse_history
from mediamill.jobs.commands import (
    JOB_HELP,
    TOP_HELP,
    is_preview,
    parse_demo,
    parse_job,
    parse_run,
)
from mediamill.model.urls import MAX_MESSAGE, safe_text
from mediamill.pipeline.faults import Drained, PermanentError, stopped_by
from mediamill.pipeline.ray_cluster.cluster_address import cluster_address
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig, load_job
from mediamill.schemas.nearest import nearest

_RESUME = "to go on, run the same command again: rows that are finished are kept"
_MENDED = "once that is mended, the same command goes on: rows that are finished are kept"
_TERMINATED = 128 + signal.SIGTERM
_BROKEN_PIPE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. argv: default, the arguments of this process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(TOP_HELP, end="", file=sys.stderr)
        return 2
    command, *rest = arguments
    if command in ("-h", "--help", "help"):
        print(TOP_HELP, end="")
        return 0
    if command == "--version":
        print(f"mediamill {_version()}")
        return 0
    if command not in _COMMANDS:
        guess = nearest(command, _COMMANDS)
        hint = f"did you mean '{guess}'?" if guess else f"expected one of {', '.join(_COMMANDS)}"
        _say(f"error: unknown command '{command}', {hint}")
        return 2
    verbose = "-v" in rest or "--verbose" in rest
    resume = "" if command in _NOT_RESUMED else _RESUME
    return exit_code(lambda: _COMMANDS[command](rest), verbose, resume)


def exit_code(action: Callable[[], int], verbose: bool = False, resume: str = _RESUME) -> int:
    """Runs `action` and returns its exit code. Prints an exception as a sentence on stderr.

    resume: how to go on after an interruption; empty for an action that has nothing to resume.
    """
    ending = resume and f"; {resume}"
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        return action()
    except JobError as error:
        for sentence in error.sentences:
            _say(f"error: {sentence}")
        return 2
    except Drained as error:
        word = "interrupted" if error.signal == signal.SIGINT else "terminated"
        _say(f"{word}: {error}", ending)
        return 1 if error.signal is None else 128 + error.signal
    except ClusterGoneError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        print(f"interrupted{ending}", file=sys.stderr)
        return 130
    except SystemExit as stop:
        # Ray replaces the handler of SIGTERM by one that exits with the bare number of the signal.
        if stop.code in (signal.SIGTERM, _TERMINATED):
            print(f"terminated{ending}", file=sys.stderr)
            return _TERMINATED
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:  # noqa: BLE001 - this is the outermost frame
        if isinstance(error, BrokenPipeError) and not resume:
            return _BROKEN_PIPE  # the reader needs no more, as in `mediamill show ... | head -1`
        if verbose:
            for line in traceback.format_exc().splitlines():
                _say(line)
        stopped = stopped_by(error)
        permanent = isinstance(stopped, PermanentError)
        if isinstance(stopped, PermanentError) and stopped.in_job:
            _say(f"error: {stopped}")
            return 2
        hint = "" if verbose else " (-v shows the traceback)"
        if not resume:
            _say(f"error: {stopped}", hint)
            return 1
        _say(f"error: the job failed: {stopped}", f"{hint}; {_MENDED if permanent else resume}")
        return 1


def _say(text: str, ending: str = "") -> None:
    """Prints one message on stderr: without secrets, and cut, but not its ending.

    What a terminal would obey (escape sequences, line breaks) is written as an escape.
    """
    shown = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in safe_text(text)
    )
    print(safe_text(shown, MAX_MESSAGE - len(ending)) + ending, file=sys.stderr)


def _job(kind: str, argv: Sequence[str]) -> int:
    if "--plan" in argv:
        return _plan([kind, *argv])
    if is_preview(argv):
        return _preview([kind, *argv])
    options, overrides = parse_job(kind, argv)
    return _run_job(load_job(options.config, overrides, job=kind), options)


def _run(argv: Sequence[str]) -> int:
    if "--plan" in argv:
        return _plan(argv)
    if is_preview(argv):
        return _preview(argv)
    options, overrides = parse_run(argv)
    return _run_job(load_job(options.config, overrides), options)


def _run_job(job: JobConfig, options: argparse.Namespace) -> int:
    cluster_address(options.address, os.environ)  # for its JobError
    from mediamill.jobs.manifest import resolve_manifest

    job = resolve_manifest(job)
    retry = None
    if options.retry_errors:
        from mediamill.pipeline.retry.options import Retry

        retry = Retry(only=False)
    from mediamill.pipeline.manifest.selection import RowChoice

    choice = RowChoice(options.limit, options.sample, job.seed)
    arguments = (job, options.json, options.address, retry, choice, options.verbose)
    if job.job == "annotate":
        from mediamill.jobs.annotate import annotate

        return annotate(*arguments).exit_code
    from mediamill.jobs.per_row import run_per_row

    return run_per_row(*arguments).exit_code


def _submit(argv: Sequence[str]) -> int:
    from mediamill.jobs.cluster.remote_commands import submit_command

    return submit_command(argv, os.environ)


def _job_command(command: str, argv: Sequence[str]) -> int:
    from mediamill.jobs.cluster.remote_commands import job_command

    return job_command(command, argv, os.environ)


def _history(argv: Sequence[str]) -> int:
    options = parse_history(argv)
    from mediamill.jobs.history import history

    return history(options.output, options.json)


def _watch(argv: Sequence[str]) -> int:
    from mediamill.jobs.watch import watch_command

    return watch_command(argv)


def _manifest(argv: Sequence[str]) -> int:
    from mediamill.jobs.manifest import manifest_command

    return manifest_command(argv)


def _plan(argv: Sequence[str]) -> int:
    from mediamill.jobs.plan import run_plan

    return run_plan(argv)


def _export(argv: Sequence[str]) -> int:
    from mediamill.jobs.export import run_export

    return run_export(argv)


def _compact(argv: Sequence[str]) -> int:
    from mediamill.jobs.export import run_compact

    return run_compact(argv)


def _retry(argv: Sequence[str]) -> int:
    from mediamill.jobs.retry import run_retry

    return run_retry(argv, os.environ)


def _check(argv: Sequence[str]) -> int:
    from mediamill.jobs.check import run_check

    return run_check(argv)


def _report(argv: Sequence[str]) -> int:
    from mediamill.jobs.report.command import run_report

    return run_report(argv)


def _show(argv: Sequence[str]) -> int:
    from mediamill.jobs.show.show import run_show

    return run_show(argv, os.environ, sys.stdout.isatty())


def _preview(argv: Sequence[str]) -> int:
    from mediamill.jobs.preview.command import run_preview

    return run_preview(argv, os.environ, sys.stdout.isatty())


def _diff(argv: Sequence[str]) -> int:
    from mediamill.jobs.diff.command import run_diff

    return run_diff(argv, os.environ, sys.stdout.isatty())


def _demo(argv: Sequence[str]) -> int:
    options = parse_demo(argv)
    from mediamill.jobs.demo.demo import main as run_demo

    return run_demo(options.dir, model=options.model)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": _demo,
    **{kind: partial(_job, kind) for kind in JOB_HELP},
    "manifest": _manifest,
    "run": _run,
    "plan": _plan,
    "preview": _preview,
    "submit": _submit,
    "status": partial(_job_command, "status"),
    "logs": partial(_job_command, "logs"),
    "stop": partial(_job_command, "stop"),
    "watch": _watch,
    "history": _history,
    "retry": _retry,
    "check": _check,
    "report": _report,
    "show": _show,
    "diff": _diff,
    "export": _export,
    "compact": _compact,
}


# Commands that change no output: an interrupted one has nothing to go on with.
_NOT_RESUMED = (
    *("submit", "status", "logs", "stop", "watch", "history"),
    *("plan", "preview", "check", "report", "show", "diff"),
)


def _exit_on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(_TERMINATED)


def _version() -> str:
    try:
        return version("mediamill")
    except PackageNotFoundError:
        return "(not installed)"
