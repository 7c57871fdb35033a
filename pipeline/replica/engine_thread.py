"""Runs an engine in a thread that serves calls from many threads.

The engine takes one caller at a time and is fastest with many requests at once, while Ray passes
blocks of rows to several threads of the actor. Here the requests of all calls share the engine:
each enters as soon as there is room, and a call returns when its own requests are answered.
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
    """What is used here of `mediamill.model.engine.Engine`."""

    def add(self, request: Request) -> None: ...
    def step(self) -> Sequence[Completion]: ...
    def reset(self) -> None: ...
    @property
    def unfinished(self) -> int: ...


@dataclass(frozen=True)
class EngineResult:
    """The completion of a request, or the error that it raised even when it ran alone.

    attempt: 2 when it failed together with others and was retried alone.
    """

    completion: Completion | None
    attempt: int = 1
    error: Exception | None = None


class EngineThread:
    """Owns an engine, in a thread of its own, until `end` or `close` is called.

    max_requests: the most that the engine holds at once, waiting ones included.
    refuse: called with each error of the engine. It raises if no further request can be answered;
        what it raises is raised in every waiting call.
    step_s: seconds after which an engine that has not finished a step counts as broken.
    """

    def __init__(
        self,
        engine: RunningEngine,
        max_requests: int,
        refuse: Callable[[Exception], None],
        step_s: float = math.inf,
    ) -> None:
        self._engine, self._refuse = engine, refuse
        self._max_requests, self._step_s = max_requests, step_s
        self._step_started: float | None = None
        self.step_seconds = 0.0  # of all steps so far
        self._ended: Future[None] = Future()
        # None only wakes the thread.
        self._queue: queue.SimpleQueue[tuple[Request, Future[EngineResult]] | None]
        self._queue = queue.SimpleQueue()
        self._deferred: deque[tuple[Request, Future[EngineResult]]] = deque()
        self._in_flight: dict[str, tuple[Request, Future[EngineResult]]] = {}
        self._thread = threading.Thread(target=self._loop, daemon=True, name="engine")
        self._thread.start()
        if math.isfinite(step_s):
            threading.Thread(target=self._watchdog, daemon=True, name="engine watchdog").start()

    def __call__(self, requests: Sequence[Request]) -> list[EngineResult]:
        """Returns the results in the requests' order. Raises the error that `end` was given."""
        futures: list[Future[EngineResult]] = [Future() for _ in requests]
        for entry in zip(requests, futures, strict=True):
            self._queue.put(entry)
        results = []
        for future in futures:
            either: list[Future[Any]] = [future, self._ended]
            wait(either, return_when=FIRST_COMPLETED)
            if not future.done():
                self._ended.result()
            results.append(future.result())
        return results

    @property
    def requests(self) -> int:
        """Those that have no answer yet."""
        return len(self._in_flight) + len(self._deferred) + self._queue.qsize()

    def end(self, error: Exception) -> None:
        """Raises `error` in all calls, now and later. Thread-safe, even while a step hangs."""
        with suppress(InvalidStateError):  # the first error counts
            self._ended.set_exception(error)
            self._queue.put(None)

    def close(self) -> None:
        """Ends the thread, and waits for the step that it is at: nothing uses the engine after it.

        Calls raise BrokenEngineError, now and later.
        """
        self.end(BrokenEngineError("the engine was closed"))
        self._thread.join()

    def _watchdog(self) -> None:
        """Detects a step that never returns; it blocks the engine's own thread."""
        while not self._ended.done():
            time.sleep(min(1.0, self._step_s / 4))
            started = self._step_started
            if started is not None and time.monotonic() - started > self._step_s:
                self.end(
                    BrokenEngineError(
                        f"the engine has not finished a step for {self._step_s:g} s "
                        "(limits.step_timeout_s)"
                    )
                )

    def _loop(self) -> None:
        while not self._ended.done():
            self._take()
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - the engine's, of any kind
                self._recover(error)
            except BaseException as error:  # noqa: BLE001 - or the calls would wait endlessly
                self._fail(error)

    def _take(self) -> None:
        """Gives queued requests to the engine. Blocks while it has none and the queue is empty."""
        for _ in range(len(self._deferred)):
            self._admit(*self._deferred.popleft())
        while len(self._in_flight) < self._max_requests:
            try:
                entry = self._queue.get(block=not self._in_flight)
            except queue.Empty:
                return
            if entry is None:
                return
            self._admit(*entry)

    def _admit(self, request: Request, future: Future[EngineResult]) -> None:
        if self._ended.done():
            return  # the call has the error
        if request.id in self._in_flight or len(self._in_flight) >= self._max_requests:
            # The engine is full, or has a request with this id, from another call.
            self._deferred.append((request, future))
        else:
            try:
                self._engine.add(request)
            except Exception as error:  # noqa: BLE001 - the request is bad, or the engine broken
                self._reject(error, future)
                return
            self._in_flight[request.id] = (request, future)

    def _reject(self, error: Exception, future: Future[EngineResult]) -> None:
        try:
            self._refuse(error)
        except Exception as fatal:  # noqa: BLE001 - raised in every waiting call
            future.set_exception(fatal)
            self._fail(fatal)
        else:
            future.set_result(EngineResult(None, 1, error))

    def _timed_step(self) -> Sequence[Completion]:
        self._step_started = started = time.monotonic()
        try:
            return self._engine.step()
        finally:
            self._step_started = None
            self.step_seconds += time.monotonic() - started

    def _step(self) -> None:
        """Runs one step, and returns its completions to the calls once all are checked."""
        if not self._in_flight:
            return
        completions = self._timed_step()
        ids = [completion.id for completion in completions]
        for number, name in enumerate(ids):
            if name not in self._in_flight or name in ids[:number]:
                raise IdentityError(f"the engine answered {name} twice, or without a request")
        missing = sorted(self._in_flight.keys() - set(ids))
        if missing and not self._engine.unfinished:
            raise IdentityError(f"the engine's answers do not match its requests: {missing[:3]}")
        for completion in completions:
            self._in_flight.pop(completion.id)[1].set_result(EngineResult(completion))

    def _recover(self, error: Exception) -> None:
        """Retries the requests that failed together once, each alone."""
        try:
            if isinstance(error, IdentityError):
                raise error
            self._refuse(error)
            self._engine.reset()
            for name, (request, future) in list(self._in_flight.items()):
                result = self._run_alone(request)
                del self._in_flight[name]
                future.set_result(result)
        except BaseException as fatal:  # noqa: BLE001 - raised in every waiting call
            self._fail(fatal)

    def _run_alone(self, request: Request) -> EngineResult:
        completions: list[Completion] = []
        try:
            self._engine.add(request)
            while self._engine.unfinished:
                completions += self._timed_step()
        except Exception as error:  # noqa: BLE001 - it must be this request's own
            self._refuse(error)
            self._engine.reset()
            return EngineResult(None, 2, error)
        ids = [completion.id for completion in completions]
        if ids != [request.id]:
            raise IdentityError(f"the engine was asked for {request.id} and answered {ids}")
        return EngineResult(completions[0], 2)

    def _fail(self, error: BaseException) -> None:
        """Raises `error` in every call that waits for the engine."""
        if isinstance(error, IdentityError | BrokenEngineError):
            self.end(error)  # the engine can no longer be trusted, by later calls either
        for _, future in self._in_flight.values():
            future.set_exception(error)
        self._in_flight.clear()
        with suppress(Exception):  # it is broken already, and the calls have the error
            self._engine.reset()
