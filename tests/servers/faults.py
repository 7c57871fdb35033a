"""Which requests go wrong, and how: drawn from a seed, or planned for one path."""

import random
import socket
import struct
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What a server of object storage does when it is busy or breaks.
STATUSES = {"500": "InternalError", "503": "SlowDown", "429": "TooManyRequests"}
# reset: before the request is looked at. lost: after it was carried out, instead of an answer.
# cut: in the middle of the body, whose right length was stated. slow: the body takes a while.
KINDS = ("500", "503", "reset", "lost", "cut", "slow")


class Faults:
    """Draws a fault, or none, for each request; counts them by kind.

    longest: faults in a row for one request (method and path), after which it is let through; a
    bound on bad luck, None for none. Planned faults come first, in their order.
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
        """The next requests for `path` (without a query) meet these; None for a sound answer."""
        with self._lock:
            self._plans[path].extend(faults)

    def draw(self, method: str, path: str) -> str | None:
        """What befalls this request."""
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
    """A server of this machine on a free port, in threads of its own."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, handler: type[BaseHTTPRequestHandler], context: Any = None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        scheme = "http"
        if context is not None:  # the handshake is each thread's own: a bad one stops no other
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
        pass  # clients hang up on answers that they do not want, as they should

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


def reset(connection: socket.socket) -> None:
    """Closes a connection with a TCP reset instead of an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
