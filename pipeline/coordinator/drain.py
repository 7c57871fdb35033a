"""Turns the wish to stop into the end of a running dataset: what has begun is finished, no more.

Two levers: the desk tells every process to begin nothing (see guard.py), and the valve takes from
Ray Data what waits before the stages. Ray Data then sees the end of its input, and passes on what
it has gathered for the write. Which signals mean the wish is not known here.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from mediamill.pipeline.coordinator import coordinator
from mediamill.pipeline.faults import Drained, RunError

_POLL_S = 0.2
_ABORT_S = 30.0  # for Ray Data to end what was aborted; then it is left behind


class Stop:
    """The wish that a run ends, to be handed to `run`, and asked for from any thread or handler."""

    def __init__(self) -> None:
        self.asked = False
        self.signal: int | None = None

    def ask(self, signal: int | None = None) -> None:
        """Let the run finish what it has begun, and end. signal: which one asked for it."""
        if not self.asked:
            self.signal, self.asked = signal, True


def attend(work: Callable[[], None], heed: Callable[[], None]) -> None:
    """Does `work` in another thread and calls `heed` now and then, so that signals are heard here.

    Raises what the work raises, or what `heed` does, which leaves the work behind.
    """
    failed: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised again, by who waits
            failed.append(error)

    thread = threading.Thread(target=body, daemon=True, name="dataset")
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        heed()
    if failed:
        raise failed[0]


class Valve:
    """Ray Data's execution callback: its scheduling loop calls it after each step.

    last: part of the name of the last operator that begins nothing once the valve is shut.
    """

    def __init__(self, last: str) -> None:
        self._last = last
        self._shut = False
        self._error: RunError | None = None

    def shut(self) -> None:
        """Let no further row through to the operator `last`."""
        self._shut = True

    def abort(self, error: RunError) -> None:
        """End the execution at once: who waits for it gets this error."""
        self._error = error

    def __call__(self) -> "Valve":
        """Ray Data makes its callbacks by calling what it was given."""
        return self

    def __deepcopy__(self, _memo: object) -> "Valve":
        """Ray Data copies its settings, and would not hear of a copy that was shut."""
        return self

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing yet."""

    def on_execution_step(self, executor: Any) -> None:
        """Empties the queues before the stages. Tasks that run are left alone, and what they give
        is taken away at the next step.
        """
        if self._error is not None:
            raise self._error
        if not self._shut:
            return
        # No public way leads there. Without it rows would reach the stages, which let them go.
        topology = getattr(executor, "_topology", {})
        if not any(self._last in operator.name for operator in topology):
            return
        for operator, state in topology.items():
            while not operator.input_dependencies and operator.has_next():
                operator.get_next()
            for queue in state.input_queues:
                queue.clear()
            if self._last in operator.name:
                return

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing more."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing more."""


class Ending:
    """Sees to it that a run ends in time, once the desk or the user says that it has to.

    actor: the desk. grace_s: for what has begun. why: the run ends early, None while it does not.
    """

    def __init__(self, actor: Any, valve: Valve, stop: Stop, grace_s: float) -> None:
        self._desk, self._valve, self._stop, self._grace_s = actor, valve, stop, grace_s
        self._until = 0.0
        self.why: RunError | None = None
        self._lost = self._told = 0

    @property
    def engines(self) -> int:
        """How many broke so far and were replaced. A desk that starts again counts anew."""
        return self._lost + self._told

    def heed(self) -> None:
        """To be called all the time. Raises RunError when even the abort does not end the run."""
        word = coordinator.ask(self._desk)
        now = time.monotonic()
        if word is not None:
            self._lost += self._told if word.engines < self._told else 0
            self._told = word.engines
        if self.why is None:
            if word is not None and word.why is not None:
                self.why = RunError(word.why)
            elif self._stop.asked:
                self.why = self._drained("what had begun is finished")
            else:
                return
            self._until = now + self._grace_s
            self._valve.shut()
        if word is not None and not word.drains:
            self._desk.drain.remote()  # again, if the desk has died in between
        late = now > self._until
        if late and isinstance(self.why, Drained):
            grace = f"resources.grace_s = {self._grace_s:g} s"
            self.why = self._drained(f"{grace} did not suffice for what had begun")
        if late or (word is not None and word.at_once):
            self._valve.abort(self.why)
        if now > self._until + _ABORT_S:
            raise self.why

    def _drained(self, how: str) -> Drained:
        return Drained(how, self._stop.signal)
