"""The entry point of the command: says that it runs before it imports anything that takes long."""

import atexit
import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

# Commands that print their result at once, or nothing before it.
_QUICK = ("-h", "--help", "help", "--version")
_CLEAR = "\r\x1b[K"


def main() -> int:
    """Runs the command of this process's arguments, and returns its exit code."""
    # Python's own handler would print a traceback through the imports.
    signal.signal(signal.SIGINT, _interrupted)
    _prepare_streams()
    arguments = sys.argv[1:]
    if arguments and not set(_QUICK) & set(arguments) and _can_rewrite():
        sys.stderr.write(f"mediamill {_printable(arguments[0])}: starting")
        sys.stderr.flush()
        stderr, stdout = sys.stderr, sys.stdout
        first = _FirstLine(stderr)
        sys.stderr = _Clearing(stderr, first)
        if stdout.isatty():
            sys.stdout = _Clearing(stdout, first)
        try:
            return _run()
        finally:
            first.clear()
            sys.stderr, sys.stdout = stderr, stdout
    return _run()


def _run() -> int:
    from mediamill.jobs.cli import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader needs no more, as in `mediamill ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python would complain at its end
    if (colorama := sys.modules.get("colorama.initialise")) is not None:
        # A library of Ray's, which would end the output with an escape sequence.
        atexit.unregister(colorama.reset_all)
    return code


def _prepare_streams() -> None:
    """Lets the command write to streams that are closed, or that cannot have every letter."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed (>&-)
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors != "backslashreplace":
        sys.stdout.reconfigure(errors="replace")


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    clear = _CLEAR if _can_rewrite() else ""
    os.write(2, f"{clear}interrupted; nothing had begun\n".encode())
    os._exit(130)


def _can_rewrite() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def _printable(text: str) -> str:
    return text[:40] if text[:40].isprintable() else "command"


class _FirstLine:
    """The line that says that the command starts."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._shown = stream, True

    def clear(self) -> None:
        if self._shown:
            self._shown = False
            self._stream.write(_CLEAR)
            self._stream.flush()


class _Clearing:
    """A stream that removes the first line before it writes anything else."""

    def __init__(self, stream: Any, first: _FirstLine) -> None:
        self._stream, self._first = stream, first

    def write(self, text: str) -> int:
        self._first.clear()
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
