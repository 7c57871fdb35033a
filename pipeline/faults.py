"""The exceptions of a run as a whole; an error of one row is a column of that row instead.

RunError (RuntimeError)           the run stopped before its end; the same command resumes it
+ Drained                         someone asked it to stop
BrokenEngineError (RuntimeError)  one process cannot go on; another one may take its place
FatalError (RuntimeError)         answers cannot be trusted: the whole run stops
+ IdentityError                   an answer or a tensor belongs to another row
+ CanaryError                     the canary's answer is not the expected one
"""

from collections.abc import Sequence

_CHAINED = "The above exception was the direct cause of the following exception"


class RunError(RuntimeError):
    """The job stopped before its end. The message says why; running it again resumes it."""


class Drained(RunError):
    """The job stopped on request. The message says what it had done by then.

    signal: the number of the signal that requested it; None when a program did.
    """

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal


class BrokenEngineError(RuntimeError):
    """The engine or its device would fail for every further row: the process has to end."""


class FatalError(RuntimeError):
    """No further answer can be trusted. The job must stop. The message says why."""


class IdentityError(FatalError):
    """An answer does not belong to the row that it came back to."""


class CanaryError(FatalError):
    """The canary's answer is not the expected one."""


def root_cause(error: BaseException) -> str:
    """Returns the root cause of an error in one line. Ray's errors hold whole remote tracebacks."""
    while not _is_ours(error):
        cause = getattr(error, "cause", None) or error.__cause__
        if not isinstance(cause, BaseException):
            break
        if _CHAINED in str(error):
            # A stage's own error: only the text of the remote traceback names it.
            return _raised(str(error).partition(_CHAINED)[0].splitlines())
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("Traceback" in line for line in lines):
        return lines[-1]
    if lines and _is_ours(error):
        return lines[0]  # already a sentence
    return ": ".join([type(error).__name__, *lines[:1]])


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "mediamill"


def _raised(traceback: Sequence[str]) -> str:
    """Returns the line after the last frame of a traceback, without the names of modules."""
    lines = [line for line in traceback if line.strip()]
    frames = [number for number, line in enumerate(lines) if line.startswith(" ")]
    last = lines[min(frames[-1] + 1, len(lines) - 1) if frames else 0]
    name, colon, message = last.partition(":")
    return f"{name.rpartition('.')[2]}{colon}{message}"
