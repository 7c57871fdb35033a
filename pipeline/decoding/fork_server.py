"""Turns a wish for a decoding process into one that is ready, in milliseconds, and ends it.

The nursery is a child of this process that has loaded everything; workers are its forks. What they
are asked is not known here.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mediamill.model.errors import ModelError
from mediamill.pipeline.decoding import socket_messages
from mediamill.pipeline.decoding.message_stream import Receiver, pipes
from mediamill.pipeline.decoding.reply import Shape
from mediamill.pipeline.decoding.shared_memory import SharedMemory

# The child finds its modules as this process does, and knows nothing else of it.
_START = """\
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from mediamill.pipeline.decoding.decode_worker import main
main(int(sys.argv[1]))
"""
_LOAD_S = 600.0  # libraries may come from a slow network disk
_FORK_S = 60.0
_STARTS = 3
_HEADER = 64 * 1024  # bytes that the nursery's answers take at most
_ANSWER = 16 * 1024**2  # bytes of a worker's answer beside its patches: of many frames, their times
_ANSWER_S = 10.0  # for the rest of an answer that has begun: other rows wait


@dataclass(frozen=True)
class Settings:
    """What a nursery loads.

    factory: "module:name" of what makes the processor, called with `arguments`, which are JSON.
    max_bytes: memory that decoding one row may take.
    """

    factory: str
    arguments: Mapping[str, Any]
    max_bytes: int


@dataclass(frozen=True)
class Worker:
    """A process that decodes. process: its number. link: the way to ask it. memory: shared with it.

    answers: of what comes over the link. nursery: which one has forked it, counted.
    """

    process: int
    link: socket.socket
    answers: Receiver
    memory: SharedMemory
    nursery: int


class ForkServer:
    """The one that forks workers; threads may share it. It is started when it is made."""

    def __init__(self, settings: Settings) -> None:
        """Raises ModelError for a checkpoint that cannot be used, RuntimeError for all else."""
        self._settings = settings
        self._mutex = threading.Lock()
        self._starts = 0
        self._links: set[socket.socket | Receiver] = set()
        self.shapes: Mapping[str, Shape] = {}
        self._start()

    @property
    def process(self) -> int:
        """Its number; another one after it had to be started again."""
        return self._child.pid

    def fork(self) -> Worker:
        """A new worker. Raises RuntimeError when there can be none, OSError without memory."""
        most = self._settings.max_bytes
        with self._mutex:
            for _ in range(_STARTS):
                ours, theirs = socket.socketpair()
                listen, send = pipes()
                memory, handle = SharedMemory.new(most)
                answers = Receiver(*listen, _ANSWER, _ANSWER_S)
                handles = (theirs.fileno(), *send, handle)
                try:
                    number = int(self._ask({"max_bytes": most}, handles)["worker"])
                    self._links |= {ours, answers}
                    return Worker(number, ours, answers, memory, self._starts)
                except _LOST:
                    ours.close()
                    answers.close()
                    memory.close()
                    self._end()
                    self._start()
                finally:
                    theirs.detach()
                    for one in handles:
                        os.close(one)
        raise RuntimeError(f"the decoding process ended {_STARTS} times when it was to fork")

    def end(self, worker: Worker) -> int | None:
        """Ends a worker. Its exit status: below 0 the signal that ended it, if it has ended before
        this call; None when its nursery has ended, and every worker with it.
        """
        worker.link.close()
        worker.answers.close()
        worker.memory.close()
        with self._mutex:
            self._links -= {worker.link, worker.answers}
            if worker.nursery != self._starts:
                return None
            try:
                return int(self._ask({"end": worker.process})["status"])
            except _LOST:
                self._end()
                self._start()
                return None

    def close(self) -> None:
        """Ends it, and its workers with it, which nobody may be using."""
        with self._mutex:
            self._finalizer()
            for link in self._links:
                link.close()

    def _ask(self, question: Mapping[str, Any], handles: Sequence[int] = ()) -> Mapping[str, Any]:
        deadline = time.monotonic() + _FORK_S
        socket_messages.send(self._link, json.dumps(question).encode(), deadline, handles)
        message = socket_messages.receive(self._link, _HEADER, deadline)
        answer: Mapping[str, Any] = json.loads(message.header)
        return answer

    def _start(self) -> None:
        self._starts += 1
        self._link, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C is for the job, which ends what is in work in its way.
            self._child = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._finalizer = weakref.finalize(self, _end, self._child, self._link, self._links)
        settings, deadline = self._settings, time.monotonic() + _LOAD_S
        asked = {"factory": settings.factory, "settings": dict(settings.arguments)}
        try:
            socket_messages.send(self._link, json.dumps(asked).encode(), deadline)
            told = json.loads(socket_messages.receive(self._link, _HEADER, deadline).header)
        except _LOST as error:
            self._end()
            status = self._child.returncode
            raise RuntimeError(
                f"the decoding process ended with the status {status} while it was starting"
            ) from error
        if "error" in told:
            self._end()
            name, message = told["error"]
            raise (
                ModelError(message) if name == "ModelError" else RuntimeError(f"{name}: {message}")
            )
        self.shapes = {kind: Shape(**shape) for kind, shape in told["shapes"].items()}

    def _end(self) -> None:
        self._finalizer.detach()
        _end(self._child, self._link, ())


_LOST = (socket_messages.GoneError, socket_messages.GarbledError, OSError, ValueError, KeyError)


def _end(
    child: "subprocess.Popen[bytes]", link: socket.socket, links: Iterable[socket.socket | Receiver]
) -> None:
    """The nursery ends when its link is closed, unless it hangs.

    links: to its workers, which end with it; those that a thread waits for must not be closed.
    """
    for one in (link, *links):
        one.close()
    with suppress(subprocess.TimeoutExpired):
        child.wait(1.0)
        return
    child.kill()
    child.wait()
