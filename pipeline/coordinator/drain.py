"""Drains a running dataset: rows in flight are finished, and no others are begun.

The coordinator tells every worker to begin nothing (see guarded_stage.py), and a callback empties
Ray Data's queues before the stages. Ray Data then sees the end of its input, and passes on the
rows that it has gathered for the write.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from mediamill.pipeline.coordinator import coordinator
from mediamill.pipeline.coordinator.failure_policy import RunStatus
from mediamill.pipeline.faults import Drained, PermanentError, RunError

_POLL_S = 0.2
_MAX_RESTARTS = 3  # of a coordinator, without a finished row in between
_MAX_ALL_RESTARTS = 20  # in one run
_MAX_SILENCE_S = 1800.0  # of a coordinator that Ray starts, or that reads a large log
NOTHING_BEGUN = "nothing had begun"
_ABORT_S = 30.0  # for Ray Data to end an aborted execution; then it is abandoned


class Stop:
    """The request to end a run. Any thread or signal handler may make it.

    can_drain: whether rows are in flight that would be finished first. While there are none, a
        signal handler may end the run at once, by an exception in the main thread.
    """

    def __init__(self) -> None:
        self.requested = self.can_drain = False
        self.signal: int | None = None

    def request(self, signal: int | None = None) -> None:
        """Asks the run to finish the rows in flight and end. signal: the one that asked for it."""
        if not self.requested:
            self.signal, self.requested = signal, True


def run_while_polling(work: Callable[[], None], poll: Callable[[], None]) -> None:
    """Runs `work` in a thread and calls `poll` meanwhile. This thread can handle signals.

    Raises what `work` raises, or what `poll` raises, which abandons the work.
    """
    errors: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True, name="dataset")
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        poll()
    if errors:
        raise errors[0]


class DrainCallback:
    """Drains or aborts one execution of Ray Data, whose scheduling loop calls it after each step.

    last: part of the name of the last operator that gets no further rows once drained.
    """

    def __init__(self, last: str) -> None:
        self._last = last
        self._draining = False
        self._error: RunError | None = None

    def drain(self) -> None:
        """Lets no further row through to the operator `last`."""
        self._draining = True

    def abort(self, error: RunError) -> None:
        """Ends the execution at once, by raising `error` in it."""
        self._error = error

    def on_execution_step(self, executor: Any) -> None:
        """Empties the queues before the stages, of what running tasks have put there too."""
        if self._error is not None:
            raise self._error
        if not self._draining:
            return
        # Ray Data has no public way to do this. Without it the workers would drop the rows.
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


class RunMonitor:
    """Polls the coordinator and the user's stop request, and drains or aborts the run.

    actor: the coordinator's handle. grace_s: for the rows in flight, once the run must end.
    error: why the run ends early; None while it does not.
    """

    def __init__(self, actor: Any, callback: DrainCallback, stop: Stop, grace_s: float) -> None:
        self._actor, self._callback, self._stop, self._grace_s = actor, callback, stop, grace_s
        self._deadline = 0.0
        self.error: RunError | None = None
        self.engines_replaced = 0
        # Of the coordinator: its last process, its restarts before those without progress, the
        # rows that it had finished, and when it last replied.
        self._process: str | None = None
        self._restarts: int | None = None
        self._rows = 0
        self._replied = time.monotonic()

    def poll(self) -> None:
        """Must be called regularly. Raises RunError when even the abort does not end the run, when
        there is no coordinator any more, or it is killed again and again, and when the run must end
        before any row has begun.
        """
        status = coordinator.poll(self._actor)
        now = time.monotonic()
        if status is None:
            self._check_coordinator(now)
        else:
            self._replied = now
            if status.finished_rows > self._rows:
                self._rows, self._restarts = status.finished_rows, None
            if status.process != self._process:
                self._process = status.process
                self._check_coordinator(now)
            if status.engines_replaced < self.engines_replaced:  # it was restarted
                self._actor.carry.remote(self.engines_replaced)
            self.engines_replaced = max(self.engines_replaced, status.engines_replaced)
            self._stop.can_drain = self._stop.can_drain or status.begun
        if self.error is None:
            if status is not None and status.stop_reason is not None:
                self.error = _stopped(status)
            elif self._stop.requested:
                if not self._stop.can_drain:
                    self.error = self._drained(NOTHING_BEGUN)
                    raise self.error
                self.error = self._drained("what had begun is finished")
            else:
                return
            self._deadline = now + self._grace_s
            self._callback.drain()
        if status is not None and not status.draining:
            self._actor.drain.remote()  # again, if the coordinator was restarted
        late = now > self._deadline
        if late and isinstance(self.error, Drained):
            grace = f"resources.grace_s = {self._grace_s:g} s"
            self.error = self._drained(f"{grace} did not suffice for what had begun")
        if late or (status is not None and status.abort):
            self._callback.abort(self.error)
        if now > self._deadline + _ABORT_S:
            raise self.error

    def _check_coordinator(self, now: float) -> None:
        """Raises PermanentError when the coordinator is dead, or is killed again and again."""
        life = coordinator.life(self._actor)
        if life.death is None:
            if self._restarts is None:
                self._restarts = life.restarts
            if life.restarts - self._restarts >= _MAX_RESTARTS:
                how = f"was killed {_MAX_RESTARTS} times, and no row was finished in between"
            elif life.restarts >= _MAX_ALL_RESTARTS:
                how = f"was killed {_MAX_ALL_RESTARTS} times in this run"
            elif now - self._replied > _MAX_SILENCE_S:
                how = f"has not replied for {_MAX_SILENCE_S / 60:.0f} minutes"
            else:
                return
        self.error = life.death or PermanentError(
            f"the coordinator, the process that owns the ledger, {how}; the machine may lack "
            "memory, and Ray's logs may say why"
        )
        raise self.error

    def _drained(self, message: str) -> Drained:
        return Drained(message, self._stop.signal)


def _stopped(status: RunStatus) -> RunError:
    reason = status.stop_reason or ""
    if status.remedy == "again":
        return RunError(reason)
    return PermanentError(reason, in_job=status.remedy == "job")
