"""The processes of the other ranks, as the first one has them: started, told, watched and ended.

Turns a death, a hang or a failure of one of them into one call and the end of all. It does not
know what they are told.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from mediamill.model.tensor_parallel.framing import receive, send
from mediamill.model.tensor_parallel.worker import ALIVE, BEAT_S, FAILED, READY


class WorkerProcesses:
    """`count` processes. silence_s: without a sign of life after which one counts as hung.

    death: why they are gone, once one of them has died.
    on_death: called once, with the reason, after all of them were ended.
    """

    def __init__(
        self, count: int, silence_s: float, on_death: Callable[[str], None] | None = None
    ) -> None:
        self._silence_s = silence_s
        self.death: str | None = None
        self._on_death = on_death
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ready = [threading.Event() for _ in range(count)]
        self._seen = [time.monotonic()] * count
        self._reasons: dict[int, str] = {}
        self._ending = threading.Event()
        self._watching = threading.Event()
        self._lock = threading.Lock()
        started = threading.Event()
        self._failure: OSError | None = None
        # A process told to die with its parent dies with the thread that has started it: this one
        # lives as long as they do.
        threading.Thread(target=self._live, args=(count, started), daemon=True).start()
        started.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def processes(self) -> list[int]:
        """Their ids."""
        return [process.pid for process in self._processes]

    def tell(self, kind: bytes, body: bytes = b"") -> None:
        """One frame to each. Raises OSError when one is gone."""
        for number in range(len(self._processes)):
            self.tell_one(number, kind, body)

    def tell_one(self, number: int, kind: bytes, body: bytes = b"") -> None:
        """One frame to one of them. Raises OSError when it is gone."""
        pipe = self._processes[number].stdin
        assert pipe is not None, "made with a pipe"
        send(pipe, kind, body)

    def await_ready(self, timeout_s: float) -> None:
        """Wait until each has said that it is ready. Raises RuntimeError when one does not."""
        deadline = time.monotonic() + timeout_s
        for number, ready in enumerate(self._ready):
            while not ready.wait(0.1):
                if self.death is not None:
                    raise RuntimeError(self.death)
                if time.monotonic() > deadline:
                    raise RuntimeError(f"rank {number + 1} was not ready after {timeout_s:g} s")

    def watch(self) -> None:
        """From now on a death is reported to `on_death`."""
        self._watching.set()

    def end(self) -> None:
        """End all of them."""
        self._ending.set()
        self._kill()

    def _live(self, count: int, started: threading.Event) -> None:
        try:
            for number in range(count):
                command = [sys.executable, "-m", "mediamill.model.tensor_parallel.worker"]
                pipe = subprocess.PIPE
                process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
                self._processes.append(process)
                assert process.stdout is not None, "made with a pipe"
                listener = threading.Thread(
                    target=self._listen, args=(number, process.stdout), daemon=True
                )
                listener.start()
        except OSError as error:
            self._failure = error
            self.end()
            return
        finally:
            started.set()
        while not self._ending.wait(0.2):
            if reason := self._wrong():
                self._died(reason)
                return

    def _listen(self, number: int, pipe: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            while (found := receive(pipe)) is not None:
                self._seen[number] = time.monotonic()
                kind, body = found
                if kind == READY:
                    self._ready[number].set()
                elif kind == FAILED:
                    self._reasons[number] = body.decode(errors="replace")
                elif kind != ALIVE:
                    self._reasons[number] = f"it said {kind!r}"

    def _wrong(self) -> str | None:
        now = time.monotonic()
        for number, process in enumerate(self._processes):
            rank = f"rank {number + 1} (process {process.pid})"
            code = process.poll()
            if code is not None or number in self._reasons:
                time.sleep(0.1)  # its last words may still be on the way
                code = code or 0
                how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
                return f"{rank} failed: {self._reasons.get(number, how)}"
            if now - self._seen[number] > self._silence_s + BEAT_S:
                return f"{rank} has been silent for {now - self._seen[number]:.0f} s"
        return None

    def _died(self, reason: str) -> None:
        self.death = reason
        self._kill()
        if self._on_death is not None and self._watching.is_set() and not self._ending.is_set():
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
