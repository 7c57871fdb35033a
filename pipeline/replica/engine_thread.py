"""Turns calls from many threads into one stream of requests for a running engine.

The engine takes one caller at a time and is fastest with many rows at once, while Ray hands blocks
of rows to several threads of the actor. Here the requests of all calls share the engine: each
enters as soon as there is room, and a call returns when its own are answered. What a row of a table
is, is not known.
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from mediamill.model.requests import Completion, Request
from mediamill.pipeline.faults import BrokenEngineError, IdentityError


class RunningEngine(Protocol):
    """What is needed of an engine; see `mediamill.model.engine.Engine`."""

    def add(self, request: Request) -> None: ...
    def step(self) -> Sequence[Completion]: ...
    def reset(self) -> None: ...
    @property
    def unfinished(self) -> int: ...


@dataclass(frozen=True)
class EngineResult:
    """What became of a request: its completion, or the error that it raised even alone.

    attempt: 2 when it failed together with others, and was tried alone.
    """

    completion: Completion | None
    attempt: int = 1
    error: Exception | None = None


class EngineThread:
    """Owns an engine, in a thread of its own.

    most: requests that the engine has at once, waiting ones included.
    refuse: called with each error of the engine; raises the one to stop with, if no further request
        can be answered. What it raises reaches every call that waits.
    step_s: seconds after which an engine that has not finished a step counts as broken.
    """

    def __init__(
        self,
        engine: RunningEngine,
        most: int,
        refuse: Callable[[Exception], None],
        step_s: float = math.inf,
    ) -> None:
        self._engine = engine
        self._most = most
        self._refuse = refuse
        self._step_s = step_s
        self._step_began: float | None = None
        self._over: Future[None] = Future()
        self._line: queue.SimpleQueue[tuple[Request, Future[EngineResult]]] = queue.SimpleQueue()
        self._held: deque[tuple[Request, Future[EngineResult]]] = deque()
        self._flying: dict[str, tuple[Request, Future[EngineResult]]] = {}
        threading.Thread(target=self._work, daemon=True, name="batcher").start()
        if math.isfinite(step_s):
            threading.Thread(target=self._time, daemon=True, name="batcher's clock").start()

    def __call__(self, requests: Sequence[Request]) -> list[EngineResult]:
        """The answers, in order, once all are there. Raises what `end` was given."""
        waiting: list[Future[EngineResult]] = []
        for request in requests:
            waiting.append(Future())
            self._line.put((request, waiting[-1]))
        found = []
        for one in waiting:
            first: list[Future[Any]] = [one, self._over]
            wait(first, return_when=FIRST_COMPLETED)
            if not one.done():
                self._over.result()
            found.append(one.result())
        return found

    def end(self, error: Exception) -> None:
        """Let every call raise this, from any thread, even while the engine is stuck in a step."""
        with suppress(InvalidStateError):  # the first reason counts
            self._over.set_exception(error)

    def _time(self) -> None:
        """A step that never returns holds the engine's thread: only another one can tell."""
        while not self._over.done():
            time.sleep(min(1.0, self._step_s / 4))
            began = self._step_began
            if began is not None and time.monotonic() - began > self._step_s:
                self.end(
                    BrokenEngineError(
                        f"the engine has not finished a step for {self._step_s:g} s "
                        "(limits.step_timeout_s)"
                    )
                )

    def _work(self) -> None:
        while True:
            self._take()
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - the engine's own, of any kind
                self._recover(error)
            except BaseException as error:  # noqa: BLE001 - the calls wait for ever otherwise
                self._fail(error)

    def _take(self) -> None:
        """Give the engine what has come, or wait for something to come."""
        # A request whose id is in the engine, from another call, waits for that one.
        for _ in range(len(self._held)):
            self._enter(*self._held.popleft())
        while len(self._flying) < self._most:
            if not self._flying:
                self._enter(*self._line.get())
            else:
                try:
                    self._enter(*self._line.get_nowait())
                except queue.Empty:
                    return

    def _enter(self, request: Request, future: Future[EngineResult]) -> None:
        if self._over.done():
            future.set_exception(self._over.exception())
        elif request.id in self._flying or len(self._flying) >= self._most:
            self._held.append((request, future))
        else:
            try:
                self._engine.add(request)
            except Exception as error:  # noqa: BLE001 - one request's own, or the engine is broken
                self._turn_away(error, future)
                return
            self._flying[request.id] = (request, future)

    def _turn_away(self, error: Exception, future: Future[EngineResult]) -> None:
        try:
            self._refuse(error)
        except Exception as fatal:  # noqa: BLE001 - every call that waits has to know
            future.set_exception(fatal)
            self._fail(fatal)
        else:
            future.set_result(EngineResult(None, 1, error))

    def _timed_step(self) -> Sequence[Completion]:
        self._step_began = time.monotonic()
        try:
            return self._engine.step()
        finally:
            self._step_began = None

    def _step(self) -> None:
        """One step of the engine. Its answers are told when all of them are in order."""
        if not self._flying:
            return
        found = self._timed_step()
        names = [completion.id for completion in found]
        for number, name in enumerate(names):
            if name not in self._flying or name in names[:number]:
                raise IdentityError(f"the engine answered {name} twice, or nobody asked for it")
        lost = sorted(self._flying.keys() - set(names))
        if lost and not self._engine.unfinished:
            raise IdentityError(f"the engine's answers do not match its requests: {lost[:3]}")
        for completion in found:
            _, future = self._flying.pop(completion.id)
            future.set_result(EngineResult(completion))

    def _recover(self, error: Exception) -> None:
        """What failed together is tried alone, once."""
        try:
            if isinstance(error, IdentityError):
                raise error
            self._refuse(error)
            self._engine.reset()
            for name, (request, future) in list(self._flying.items()):
                answer = self._alone(request)
                del self._flying[name]
                future.set_result(answer)
        except BaseException as fatal:  # noqa: BLE001 - every call that waits has to know
            self._fail(fatal)

    def _alone(self, request: Request) -> EngineResult:
        found: list[Completion] = []
        try:
            self._engine.add(request)
            while self._engine.unfinished:
                found += self._timed_step()
        except Exception as error:  # noqa: BLE001 - now it is this request's fault
            self._refuse(error)
            self._engine.reset()
            return EngineResult(None, 2, error)
        if [completion.id for completion in found] != [request.id]:
            names = [completion.id for completion in found]
            raise IdentityError(f"the engine was asked for {request.id} and answered {names}")
        return EngineResult(found[0], 2)

    def _fail(self, error: BaseException) -> None:
        """Tell every call that waits for the engine."""
        if isinstance(error, IdentityError | BrokenEngineError):
            self.end(error)  # nobody may trust it any more, nor those who ask later
        flying = list(self._flying.values())
        self._flying.clear()
        for _, future in flying:
            future.set_exception(error)
        try:
            self._engine.reset()
        except Exception:  # noqa: BLE001 - it is broken already, and its callers know
            return
