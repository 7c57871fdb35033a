"""Runs several processes as threads of which one moves at a time, in an order drawn from a seed.

Each use of the storage, which is fsspec's in memory, is a step: between two of them any other
process may move, so that all ways in which processes can meet on a storage come up, and come again
with the same seed. A process that is killed does no further step.
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
    """What moves on its own. patience: how rarely it is chosen; slow ones become zombies."""

    def __init__(self, name: str, schedule: "Schedule", patience: float) -> None:
        self.name, self.schedule, self.patience = name, schedule, patience
        self.turn = threading.Semaphore(0)
        self.dead = self.over = False
        self.error: BaseException | None = None
        self.result: Any = None


class Schedule:
    """Chooses who moves. `moved` is called after each step, by nobody's process."""

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
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                process.error = error
            process.over = True
            self._back.release()

        self.processes.append(process)
        threading.Thread(target=body, daemon=True).start()
        return process

    def run(self, event: Callable[[], None]) -> None:
        """Until every process is over. event: may kill or spawn some, before each step."""
        while alive := [process for process in self.processes if not process.over]:
            event()
            weights = [1 / process.patience for process in alive]
            self.draw.choices(alive, weights)[0].turn.release()
            self._back.acquire()
            self._moved()

    def wait(self) -> None:
        """What a process calls to let others move."""
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
                # One call of the storage is one step, whatever it calls itself.
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
    """A pool of threads that has none: its work is done by the process that asks for it."""

    def __init__(self, threads: int) -> None:
        pass

    def __enter__(self) -> "Serial":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)
