"""The fork server: a child process that loads everything once and forks decode workers.

A fork takes milliseconds.
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
from mediamill.pipeline.decoding.message_stream import Receiver, create_pipes
from mediamill.pipeline.decoding.reply import PatchShape
from mediamill.pipeline.decoding.shared_memory import SharedMemory

# The server finds modules where this process does.
_PROGRAM = """\
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from mediamill.pipeline.decoding.decode_worker import main
main(int(sys.argv[1]))
"""
_LOAD_TIMEOUT_S = 600.0  # libraries may come from a slow network disk
_FORK_TIMEOUT_S = 60.0
_MAX_STARTS = 3
_MAX_REPLY_BYTES = 64 * 1024  # of the server
_MAX_HEADER_BYTES = 16 * 1024**2  # of a worker's reply, without patches: times of many frames
_REPLY_TIMEOUT_S = 10.0  # for the rest of a reply that has begun, while other rows wait
_LOST = (
    socket_messages.ConnectionClosedError,
    socket_messages.InvalidMessageError,
    OSError,
    ValueError,
    KeyError,
)


@dataclass(frozen=True)
class Worker:
    """A process that decodes: where its requests go and its replies come from.

    memory: shared with it.
    generation: counts the starts of the fork server, up to the one that forked this worker.
    """

    pid: int
    connection: socket.socket
    replies: Receiver
    memory: SharedMemory
    generation: int


class ForkServer:
    """Starts the server process, and restarts it when it dies. Several threads may use it.

    shapes: of patches, by kind of medium.
    """

    def __init__(self, factory: str, arguments: Mapping[str, Any], max_bytes: int) -> None:
        """factory: "module:name" of a function that creates the processor from `arguments`, JSON.

        max_bytes: of memory that decoding one row may take.
        Raises ModelError for a checkpoint that cannot be used, RuntimeError for all else.
        """
        self._load_request = {"factory": factory, "arguments": dict(arguments)}
        self._max_bytes = max_bytes
        self._mutex = threading.Lock()
        self._generation = 0
        self._worker_ends: set[socket.socket | Receiver] = set()
        self.shapes: Mapping[str, PatchShape] = {}
        self._start()

    @property
    def pid(self) -> int:
        """The process id of the server, which changes with a restart."""
        return self._process.pid

    def fork(self) -> Worker:
        """A new worker. Raises RuntimeError when the server keeps dying, OSError without memory."""
        with self._mutex:
            for _ in range(_MAX_STARTS):
                connection, worker_connection = socket.socketpair()
                receiver_fds, sender_fds = create_pipes()
                memory, memory_fd = SharedMemory.create(self._max_bytes)
                replies = Receiver(*receiver_fds, _MAX_HEADER_BYTES, _REPLY_TIMEOUT_S)
                worker_fds = (worker_connection.fileno(), *sender_fds, memory_fd)
                try:
                    reply = self._call({"max_bytes": self._max_bytes}, fds=worker_fds)
                    pid = int(reply["worker"])
                    self._worker_ends |= {connection, replies}
                    return Worker(pid, connection, replies, memory, self._generation)
                except _LOST:
                    connection.close()
                    replies.close()
                    memory.close()
                    self._restart()
                finally:
                    worker_connection.detach()
                    for fd in worker_fds:
                        os.close(fd)
        raise RuntimeError(f"the decoding process ended {_MAX_STARTS} times when it had to fork")

    def end(self, worker: Worker) -> int | None:
        """Ends a worker and returns its exit status; -N if signal N had ended it before this call.

        Returns None when its fork server has ended, and every worker with it.
        """
        worker.connection.close()
        worker.replies.close()
        worker.memory.close()
        with self._mutex:
            self._worker_ends -= {worker.connection, worker.replies}
            if worker.generation != self._generation:
                return None
            try:
                return int(self._call({"end": worker.pid})["status"])
            except _LOST:
                self._restart()
                return None

    def close(self) -> None:
        """Ends the server and its workers, which no thread may be using."""
        with self._mutex:
            self._finalizer()
            for end in self._worker_ends:
                end.close()

    def _call(
        self,
        request: Mapping[str, Any],
        timeout_s: float = _FORK_TIMEOUT_S,
        fds: Sequence[int] = (),
    ) -> Any:
        """Returns the server's reply. Raises the errors of _LOST."""
        deadline = time.monotonic() + timeout_s
        socket_messages.send(self._connection, request, deadline, fds)
        return socket_messages.receive(self._connection, _MAX_REPLY_BYTES, deadline).content

    def _restart(self) -> None:
        self._end()
        self._start()

    def _start(self) -> None:
        self._generation += 1
        self._connection, server_end = socket.socketpair()
        with server_end:
            # In a new session, so that Ctrl-C reaches only the job, which finishes its rows first.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    _PROGRAM,
                    str(server_end.fileno()),
                    json.dumps(sys.path),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(server_end.fileno(),),
                start_new_session=True,
            )
        self._finalizer = weakref.finalize(
            self, _end_process, self._process, self._connection, self._worker_ends
        )
        try:
            reply = self._call(self._load_request, _LOAD_TIMEOUT_S)
        except _LOST as error:
            self._end()
            status = self._process.returncode
            raise RuntimeError(
                f"the decoding process ended with the status {status} while it was starting"
            ) from error
        if "error" in reply:
            self._end()
            name, text = reply["error"]
            raise ModelError(text) if name == "ModelError" else RuntimeError(f"{name}: {text}")
        self.shapes = {kind: PatchShape(**shape) for kind, shape in reply["shapes"].items()}

    def _end(self) -> None:
        self._finalizer.detach()
        # The ends of its workers stay open: a thread may be waiting for one of them.
        _end_process(self._process, self._connection, ())


def _end_process(
    process: "subprocess.Popen[bytes]",
    connection: socket.socket,
    worker_ends: Iterable[socket.socket | Receiver],
) -> None:
    """Closes the server's connection, so that it ends with its workers; kills it if it does not."""
    for end in (connection, *worker_ends):
        end.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
        return
    process.kill()
    process.wait()
