"""Runs an S3 server behind an HTTP proxy that injects faults.

    with faulty_s3(seed=1, rate=0.2) as server:
        subprocess.run(command, env={**os.environ, **server.environment})
        assert server.faults.total

The faults are in `faults.KINDS`. `server.direct` is the server itself, for setting up without
faults.
"""

import http.client
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from moto.server import ThreadedMotoServer

from tests.servers.faults import KINDS, STATUSES, Faults, Server, reset

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
_EXPIRED = "expired"  # only by plan: the credentials have expired


@dataclass
class FaultyS3:
    """A running proxy.

    endpoint: URL of the proxy.
    direct: URL of the server behind it.
    hooks: by path, what is called before each of the next requests.
    etag: replaces the ETag of all objects.
    """

    endpoint: str
    direct: str
    faults: Faults
    hooks: dict[str, list[Callable[[str, str], object] | None]] = field(default_factory=dict)
    etag: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which AWS clients use the proxy."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def faulty_s3(
    seed: int = 0,
    rate: float = 0.2,
    kinds: Sequence[str] = KINDS,
    longest: int | None = None,
    upstream: str | None = None,
    retry_after: str | None = "0",
) -> Iterator[FaultyS3]:
    """upstream: the endpoint of a running server; by default one is started."""
    moto = None
    if upstream is None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        host, port = moto.get_host_and_port()
        upstream = f"http://{host}:{port}"
    s3 = FaultyS3("", upstream, Faults(seed, rate, kinds, longest, retry_after))
    server = Server(_proxy(s3))
    s3.endpoint = server.endpoint
    try:
        yield s3
    finally:
        server.stop()
        if moto is not None:
            moto.stop()


def _proxy(s3: FaultyS3) -> type[BaseHTTPRequestHandler]:
    address, faults = urlsplit(s3.direct).netloc, s3.faults

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: Any) -> None:
            pass

        def _handle(self) -> None:
            waiting = s3.hooks.get(self.path.partition("?")[0])
            hook = waiting.pop(0) if waiting else None
            if hook is not None:
                hook(self.path, self.command)
            fault = faults.draw(self.command, self.path)
            if fault == "reset":
                return self._reset()
            body = self._body()
            if fault in STATUSES:
                return self._refuse(int(fault), STATUSES[fault])
            if fault == _EXPIRED:
                return self._refuse(400, "ExpiredToken")
            status, headers, data = self._forward(body)
            if fault == "lost":
                return self._reset()
            self._relay(status, headers, data, fault)
            return None

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(address, timeout=60)
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in _HOP_BY_HOP | {"expect", "content-length"}
            }
            try:
                connection.request(self.command, self.path, body=body, headers=headers)
                response = connection.getresponse()
                return response.status, response.getheaders(), response.read()
            finally:
                connection.close()

        def _relay(
            self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str | None
        ) -> None:
            self.send_response_only(status)
            stated = [value for name, value in headers if name.lower() == "content-length"]
            for name, value in headers:
                if name.lower() == "etag" and s3.etag is not None:
                    value = s3.etag
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    self.send_header(name, value)
            if status not in (204, 304):
                whole = stated[0] if self.command == "HEAD" and stated else str(len(data))
                self.send_header("Content-Length", whole)
            self.end_headers()
            half = len(data) // 2
            if fault == "cut" and data:
                self.wfile.write(data[:half])
                self.wfile.flush()
                return self._reset()
            if fault == "slow":
                self.wfile.write(data[:half])
                self.wfile.flush()
                time.sleep(faults.slow_s)
                data = data[half:]
            self.wfile.write(data)
            return None

        def _refuse(self, status: int, code: str) -> None:
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
            self.send_response_only(status)
            if status in (429, 503) and faults.retry_after is not None:
                self.send_header("Retry-After", faults.retry_after)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        def _reset(self) -> None:
            self.close_connection = True
            reset(self.connection)

    return Proxy
