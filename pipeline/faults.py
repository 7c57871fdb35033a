"""What can go wrong with a run as a whole, as exceptions; what is wrong with a row is a column.

RunError (RuntimeError)           the run stopped before its end; the same command goes on
+ Drained                         because it was asked to
BrokenEngineError (RuntimeError)  one process cannot go on, and another one in its place may
FatalError (RuntimeError)         answers cannot be trusted: the run stops, whoever finds it out
+ IdentityError                   an answer or a tensor is another row's
+ CanaryError                     the known row's answer is not the known one
"""


class RunError(RuntimeError):
    """The job stopped before its end. The message says why; running it again goes on."""


class Drained(RunError):
    """The job was asked to stop, and has. The message says how far it came.

    signal: the number of the signal that asked, or None when a program did.
    """

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal


class BrokenEngineError(RuntimeError):
    """The device is in a state in which every further row would fail: its process has to end."""


class FatalError(RuntimeError):
    """No further answer can be trusted. The job must stop. The message says why."""


class IdentityError(FatalError):
    """An answer does not belong to the row that it came back to."""


class CanaryError(FatalError):
    """The known row got another answer than the known one."""
