"""Draws the faults of a server's requests from a seed, or follows a plan for one path."""

import random
import socket
import struct
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Responses of an object store that is busy or broken.
STATUSES = {"500": "InternalError", "503": "SlowDown", "429": "TooManyRequests"}
# reset: before the request is read. lost: after it was carried out, instead of a response.
# cut: in the middle of the body, whose correct length was stated. slow: the body takes a while.
KINDS = ("500", "503", "reset", "lost", "cut", "slow")


class Faults:
    """Draws a fault, or none, for each request; counts them by kind.

    longest: the most faults in a row for one request (method and path); None for no bound.
    Planned faults come first, in their order.
    """

    def __init__(
        self,
        seed: int,
        rate: float,
        kinds: Sequence[str] = KINDS,
        longest: int | None = None,
        retry_after: str | None = "0",
        slow_s: float = 0.05,
    ) -> None:
        self.rate = rate  # may be changed while the server runs
        self.retry_after = retry_after
        self.slow_s = slow_s
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._kinds = tuple(kinds)
        self._longest = longest
        self._in_a_row: Counter[str] = Counter()
        self._plans: defaultdict[str, deque[str | None]] = defaultdict(deque)
        self._lock = threading.Lock()

    def plan(self, path: str, faults: Iterable[str | None]) -> None:
        """Plans the faults of the next requests for `path` (without a query); None for no fault."""
        with self._lock:
            self._plans[path].extend(faults)

    def draw(self, method: str, path: str) -> str | None:
        """Returns the fault of this request, or None."""
        with self._lock:
            plain, request = path.partition("?")[0], f"{method} {path}"
            if self._plans[plain]:
                fault = self._plans[plain].popleft()
            else:
                unlucky = self._random.random() < self.rate
                fault = self._random.choice(self._kinds) if unlucky else None
                if self._longest is not None and self._in_a_row[request] >= self._longest:
                    fault = None
            self._in_a_row[request] = self._in_a_row[request] + 1 if fault else 0
            if fault:
                self.counts[fault] += 1
            return fault

    @property
    def total(self) -> int:
        return self.counts.total()


class Server(ThreadingHTTPServer):
    """A server on a free local port, which handles each request in its own thread."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, handler: type[BaseHTTPRequestHandler], context: Any = None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        scheme = "http"
        if context is not None:  # handshakes in the threads: a bad one blocks no other
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
            scheme = "https"
        self.endpoint = f"{scheme}://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients may close a connection before the end of a response

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


def reset(connection: socket.socket) -> None:
    """Closes a connection with a TCP reset (RST) instead of a FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
