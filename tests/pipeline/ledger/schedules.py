"""Runs several processes as threads of which one moves at a time, in an order drawn from a seed.

Each use of the storage, which is fsspec's in memory, is a step. Between two steps any other process
may move, so that all interleavings on a storage come up, and the same ones again with the same
seed. A killed process makes no further step.
"""

import contextvars
import random
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

STEPS = ("pipe_file", "rm_file", "cat_file", "find", "info")
_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


class Killed(BaseException):
    """The process is gone: nothing in it handles this."""


class Process:
    """A simulated process. patience: how rarely it is chosen; slow ones become stale."""

    def __init__(self, name: str, schedule: "Schedule", patience: float) -> None:
        self.name, self.schedule, self.patience = name, schedule, patience
        self.turn = threading.Semaphore(0)
        self.dead = self.over = False
        self.error: BaseException | None = None
        self.result: Any = None


class Schedule:
    """Chooses the process that moves next. moved: called after each step, in no process."""

    def __init__(self, seed: int, moved: Callable[[], None]) -> None:
        self.draw = random.Random(seed)
        self.processes: list[Process] = []
        self._moved = moved
        self._back = threading.Semaphore(0)

    def spawn(self, name: str, action: Callable[[], Any]) -> Process:
        process = Process(name, self, self.draw.choice([1.0, 1.0, 3.0, 20.0]))

        def body() -> None:
            process.turn.acquire()
            _process.set(process)
            try:
                process.result = None if process.dead else action()
            except Killed:
                process.dead = True
            except BaseException as error:  # noqa: BLE001 - the test checks it
                process.error = error
            process.over = True
            self._back.release()

        self.processes.append(process)
        threading.Thread(target=body, daemon=True).start()
        return process

    def run(self, event: Callable[[], None]) -> None:
        """Runs until every process has ended. event: called before each step; may kill or spawn."""
        while alive := [process for process in self.processes if not process.over]:
            event()
            weights = [1 / process.patience for process in alive]
            self.draw.choices(alive, weights)[0].turn.release()
            self._back.acquire()
            self._moved()

    def wait(self) -> None:
        """Lets other processes move."""
        process = _process.get()
        if process is not None:
            self._back.release()
            process.turn.acquire()
            if process.dead:
                raise Killed

    @contextmanager
    def on_storage(self, monkeypatch: Any) -> Any:
        """Makes each use of the storage a step of the process that uses it."""

        def stepping(name: str) -> Callable[..., Any]:
            change = getattr(MemoryFileSystem, name)

            def call(fs: Any, *arguments: Any, **options: Any) -> Any:
                self.wait()
                # One call of the storage is one step, with all calls that it makes itself.
                token = _process.set(None)
                try:
                    return change(fs, *arguments, **options)
                finally:
                    _process.reset(token)

            return call

        with monkeypatch.context() as patch:
            for name in STEPS:
                patch.setattr(MemoryFileSystem, name, stepping(name))
            yield


class Serial:
    """A thread pool without threads: the caller does the work."""

    def __init__(self, threads: int) -> None:
        pass

    def __enter__(self) -> "Serial":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)
