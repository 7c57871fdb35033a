"""Starts, monitors and ends the worker processes of the other ranks.

When one of them dies, hangs or fails, all of them are killed and a callback is called once.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from mediamill.model.tensor_parallel.framing import receive, send
from mediamill.model.tensor_parallel.worker import ALIVE, FAILED, HEARTBEAT_S, READY


class WorkerProcesses:
    """`count` worker processes, of ranks 1 to `count`.

    silence_s: seconds without a heartbeat after which a worker counts as hung.
    on_death: called once, with the reason, after all workers were killed because one has died.
    death: the reason, once a worker has died.
    """

    def __init__(
        self, count: int, silence_s: float, on_death: Callable[[str], None] | None = None
    ) -> None:
        self._silence_s = silence_s
        self.death: str | None = None
        self._on_death = on_death
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ready = [threading.Event() for _ in range(count)]
        self._last_frame_s = [time.monotonic()] * count
        self._failures: dict[int, str] = {}
        self._ending = threading.Event()
        self._reporting = threading.Event()
        self._lock = threading.Lock()
        started = threading.Event()
        self._start_error: OSError | None = None
        # The parent whose death kills a process is the thread that started it (prctl(2)): this one
        # lives as long as the workers.
        threading.Thread(target=self._monitor, args=(count, started), daemon=True).start()
        started.wait()
        if self._start_error is not None:
            raise self._start_error

    @property
    def processes(self) -> list[int]:
        """The ids of the processes."""
        return [process.pid for process in self._processes]

    def broadcast(self, kind: bytes, body: bytes = b"") -> None:
        """Sends one frame to each worker. Raises OSError when one is gone."""
        for number in range(len(self._processes)):
            self.send(number, kind, body)

    def send(self, number: int, kind: bytes, body: bytes = b"") -> None:
        """Sends one frame to one worker. Raises OSError when it is gone."""
        pipe = self._processes[number].stdin
        assert pipe is not None, "started with a pipe"
        send(pipe, kind, body)

    def await_ready(self, timeout_s: float) -> None:
        """Waits until all workers are ready. Raises RuntimeError when one dies or takes longer."""
        deadline = time.monotonic() + timeout_s
        for number, ready in enumerate(self._ready):
            while not ready.wait(0.1):
                if self.death is not None:
                    raise RuntimeError(self.death)
                if time.monotonic() > deadline:
                    raise RuntimeError(f"rank {number + 1} was not ready after {timeout_s:g} s")

    def report_deaths(self) -> None:
        """From now on the death of a worker is reported to `on_death`."""
        self._reporting.set()

    def end(self) -> None:
        """Ends all workers."""
        self._ending.set()
        self._kill()

    def _monitor(self, count: int, started: threading.Event) -> None:
        try:
            for number in range(count):
                # -P: modules of the current folder are the user's own.
                command = [sys.executable, "-P", "-m", "mediamill.model.tensor_parallel.worker"]
                pipe = subprocess.PIPE
                process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
                self._processes.append(process)
                assert process.stdout is not None, "started with a pipe"
                source = (number, process.stdout)
                threading.Thread(target=self._receive, args=source, daemon=True).start()
        except OSError as error:
            self._start_error = error
            self.end()
            return
        finally:
            started.set()
        while not self._ending.wait(0.2):
            if reason := self._problem():
                self._died(reason)
                return

    def _receive(self, number: int, pipe: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            while (frame := receive(pipe)) is not None:
                self._last_frame_s[number] = time.monotonic()
                kind, body = frame
                if kind == READY:
                    self._ready[number].set()
                elif kind == FAILED:
                    self._failures[number] = body.decode(errors="replace")
                elif kind != ALIVE:
                    self._failures[number] = f"it sent a frame of the kind {kind!r}"

    def _problem(self) -> str | None:
        now = time.monotonic()
        for number, process in enumerate(self._processes):
            rank = f"rank {number + 1} (process {process.pid})"
            code = process.poll()
            if code is not None or number in self._failures:
                time.sleep(0.1)  # its last frame may not be received yet
                code = code or 0
                how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
                return f"{rank} failed: {self._failures.get(number, how)}"
            if now - self._last_frame_s[number] > self._silence_s + HEARTBEAT_S:
                return f"{rank} has been silent for {now - self._last_frame_s[number]:.0f} s"
        return None

    def _died(self, reason: str) -> None:
        self.death = reason
        self._kill()
        if self._on_death is not None and self._reporting.is_set() and not self._ending.is_set():
            self._on_death(reason)

    def _kill(self) -> None:
        with self._lock:
            for process in self._processes:
                process.kill()
            for process in self._processes:
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with suppress(OSError):
                            pipe.close()
