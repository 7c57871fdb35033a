"""The exceptions of a run as a whole; an error of one row is a column of that row instead.

RunError (RuntimeError)           the run stopped before its end; the same command resumes it
+ Drained                         someone asked it to stop
+ PermanentError                  it would stop again unless something is changed first
BrokenEngineError (RuntimeError)  one process cannot go on; another one may take its place
FatalError (RuntimeError)         answers cannot be trusted: the whole run stops
+ IdentityError                   an answer or a tensor belongs to another row
+ CanaryError                     the canary's answer is not the expected one
"""

import builtins
import errno
import re
from collections.abc import Iterator, Sequence

from mediamill.model.urls import safe_text

_MAX_CAUSES = 100
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_MORE_MISTAKES = (
    "ArrowInvalid",
    "ArrowNotImplementedError",
    "ArrowTypeError",
    "JobError",
    "ModelError",
)
_IN_CONSTRUCTOR = "error raised in its creation task"  # the frames follow, without "Traceback"
_ERRNO = re.compile(r"\[Errno ([0-9]+)\]")
# States of the machine that stay, whatever is tried again.
_LASTING = {
    errno.ENOSPC: "a disk is full: expected free space for the output and for temporary files",
    errno.EDQUOT: "a disk quota is used up: expected space for the output and for temporary files",
    errno.EROFS: "a file system is read-only: expected one that can be written",
    errno.EACCES: "a file or folder may not be used: expected permission",
    errno.EPERM: "a file or folder may not be used: expected permission",
}
_RETRIED = ": 'Failed to apply UDF transform after"  # of Ray Data, about its own settings
_TASK = "ray::"  # begins the traceback of a remote task
_EMPTY = "SystemException"
_NO_REASON = "Ray Data ended the run without a reason; the log files of Ray may have one"
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


class PermanentError(RunError):
    """The job stopped for a reason that stays: the same command alone would stop again.

    in_job: whether the job or its model can never work, as with JobError. Otherwise the reason is
    around it: a missing library, a machine, or a mistake of this program.
    """

    def __init__(self, message: str, in_job: bool = False) -> None:
        super().__init__(message)
        self.in_job = in_job


class BrokenEngineError(RuntimeError):
    """The engine or its device would fail for every further row: the process has to end."""


class FatalError(RuntimeError):
    """No further answer can be trusted. The job must stop. The message says why."""


class IdentityError(FatalError):
    """An answer does not belong to the row that it came back to."""


class CanaryError(FatalError):
    """The canary's answer is not the expected one."""


def stopped_by(error: BaseException) -> RunError:
    """Returns what an unexpected error of a run means for it, as an exception with one sentence."""
    if isinstance(error, RunError):
        return error
    root, line = _root(error)
    is_mistake = isinstance(root, _MISTAKES) if _is_ours(root) else _names_mistake(line)
    sentence = safe_text(_readable(line))
    if (number := _ERRNO.search(sentence)) and (state := _LASTING.get(int(number[1]))):
        return PermanentError(f"{state} ({sentence})")
    return PermanentError(sentence) if is_mistake else RunError(sentence)


def root_cause(error: BaseException) -> str:
    """Returns the root cause of an error in one line, without secrets.

    Ray's errors hold whole remote tracebacks.
    """
    return safe_text(_readable(_root(error)[1]))


def _root(error: BaseException) -> tuple[BaseException, str]:
    """Returns the innermost error that is known as an object, and the line that names the cause."""
    for cause in _causes(error):
        error = cause
        if _is_ours(error):
            break
        if _CHAINED in str(error) and getattr(error, "cause", None) is not None:
            # A stage's own error: only the text of the remote traceback names it.
            raised = [_raised(part.splitlines()) for part in str(error).split(_CHAINED)]
            return error, next((line for line in raised if line != _EMPTY), _NO_REASON)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("Traceback" in line or _IN_CONSTRUCTOR in line for line in lines) or (
        lines and lines[0].startswith(_TASK)
    ):
        return error, _NO_REASON if lines[-1].endswith(_EMPTY) else lines[-1]
    if lines and _is_ours(error):
        return error, lines[0]  # already a sentence
    if not lines and type(error).__name__ == _EMPTY:
        return error, _NO_REASON
    return error, ": ".join([type(error).__name__, *lines[:1]])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error, its cause, the cause's cause, ...; ends where they form a cycle."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen and len(seen) < _MAX_CAUSES:
        seen.add(id(cause))
        yield cause
        cause = _cause(cause)


def _cause(error: BaseException) -> BaseException | None:
    cause = getattr(error, "cause", None) or error.__cause__
    if _is_empty(cause) or (cause is None and _is_empty(error)):
        cause = (cause or error).__context__
    return cause if isinstance(cause, BaseException) and not _is_empty(cause) else None


def _is_empty(error: object) -> bool:
    """Whether this is the error without a message that Ray Data raises its errors from."""
    return type(error).__name__ == _EMPTY and not str(error)


def _names_mistake(line: str) -> bool:
    """Whether a line begins with an exception that the same input always raises again."""
    name = line.partition(":")[0].rpartition(".")[2]
    kind = getattr(builtins, name, None)
    return name in _MORE_MISTAKES or (isinstance(kind, type) and issubclass(kind, _MISTAKES))


def _readable(line: str) -> str:
    """Returns the last line of a traceback without module names; of ours, only the sentence."""
    line = line.partition(_RETRIED)[0]
    name, colon, message = line.partition(": ")
    if not colon or "." not in name or not name.replace(".", "").isidentifier():
        return line
    return message if name.startswith("mediamill.") else f"{name.rpartition('.')[2]}: {message}"


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "mediamill"


def _raised(traceback: Sequence[str]) -> str:
    """Returns the line after the last frame of a traceback, without the names of modules."""
    lines = [line for line in traceback if line.strip()]
    frames = [number for number, line in enumerate(lines) if line.startswith(" ")]
    last = lines[min(frames[-1] + 1, len(lines) - 1) if frames else 0] if lines else _EMPTY
    name, colon, message = last.partition(":")
    return f"{name.rpartition('.')[2]}{colon}{message}"
