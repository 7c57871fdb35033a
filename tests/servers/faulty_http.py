"""Serves a folder over HTTP, with faults that are planned or drawn from a seed.

    with faulty_http(folder, seed=1, rate=0.2) as site:
        fetch(f"{site.url}/a.jpg")
        assert site.seen["/a.jpg"] == 1

More kinds of faults than those of `faults.KINDS` can be planned or drawn, see `KINDS`.
"""

import hashlib
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.servers.faults import STATUSES, Faults, Server, reset

# understated: a shorter body than the file, with the same length stated: only the digest differs.
# short_range: fewer bytes than requested, with a correct header. no_range: the whole file instead.
# redirect: to the same file. flip: a wrong byte. trickle: a byte at a time, for seconds.
# changed: the file has another content and ETag from now on.
KINDS = (
    *("500", "503", "429", "reset", "cut", "slow"),
    *("understated", "short_range", "no_range", "redirect", "flip"),
)


@dataclass
class Site:
    """A running server.

    url: of the folder.
    seen: number of requests by path.
    ranges: path and Range header of each request, in order.
    headers: by path, all headers of the last request.
    answers: paths with a fixed response: status, headers, body.
    hints: interim responses before each response.
    hold: is called with the path and the Range header before each response.
    """

    url: str
    faults: Faults
    folder: Path
    seen: Counter[str] = field(default_factory=Counter)
    ranges: list[tuple[str, str | None]] = field(default_factory=list)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    answers: dict[str, tuple[int, dict[str, str | None], bytes]] = field(default_factory=dict)
    hints: int = 0
    hold: Callable[[str, str | None], object] | None = None

    @property
    def requests(self) -> int:
        return self.seen.total()


@contextmanager
def faulty_http(
    folder: Path,
    seed: int = 0,
    rate: float = 0.0,
    kinds: Sequence[str] = KINDS,
    longest: int | None = None,
    retry_after: str | None = "0",
    digests: bool = True,
    context: Any = None,
) -> Iterator[Site]:
    """digests: whether responses state the file's checksum. context: for https."""
    faults = Faults(seed, rate, kinds, longest, retry_after)
    site = Site("", faults, folder)
    server = Server(_handler(site, digests), context)
    site.url = server.endpoint
    try:
        yield site
    finally:
        server.stop()


def _handler(site: Site, digests: bool) -> type[BaseHTTPRequestHandler]:
    file_lock = threading.Lock()  # a "changed" file must not be read half written

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            site.seen[path] += 1
            site.ranges.append((path, self.headers.get("Range")))
            site.headers[path] = dict(self.headers.items())
            if site.hold is not None:
                site.hold(path, self.headers.get("Range"))
            fault = site.faults.draw("GET", self.path)
            if fault == "reset":
                return self._reset()
            if fault in STATUSES:
                return self._refuse(int(fault))
            if fault == "redirect":
                return self._send(302, {"Location": path + "?again"}, b"")
            if path in site.answers:
                return self._send(*site.answers[path])
            file = site.folder / unquote(path).lstrip("/")
            with file_lock:
                if fault == "changed":
                    file.write_bytes(file.read_bytes()[::-1])
                data = file.read_bytes() if file.is_file() else None
            if data is None:
                return self._refuse(404)
            return self._file(data, fault)

        def _file(self, data: bytes, fault: str | None) -> None:
            tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            headers = {"ETag": tag, "Accept-Ranges": "bytes"}
            span = self._span(len(data), tag) if fault != "no_range" else None
            if span is not None and span[0] >= len(data):
                return self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
            if digests:
                digest = b64encode(hashlib.sha256(data).digest()).decode()
                headers["Repr-Digest"] = f"sha-256=:{digest}:"
            if span is None:
                status, body = 200, data
            else:
                start, stop = span
                if fault == "short_range":
                    stop = max(start + 1, (start + stop) // 2)
                status, body = 206, data[start:stop]
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            if fault == "understated":
                body = body[: max(1, len(body) // 2)]
            if fault == "flip" and body:
                body = bytes([body[0] ^ 1]) + body[1:]
            return self._send(status, headers, body, fault)

        def _span(self, size: int, tag: str) -> tuple[int, int] | None:
            requested, condition = self.headers.get("Range"), self.headers.get("If-Range")
            if requested is None or (condition is not None and condition != tag):
                return None
            first, _, last = requested.removeprefix("bytes=").partition("-")
            return int(first), min(size, int(last) + 1 if last else size)

        def _send(
            self, status: int, headers: dict[str, str | None], body: bytes, fault: str | None = None
        ) -> None:
            for number in range(site.hints):
                self.send_response_only((103, 102, 100)[number % 3])
                self.send_header("Link", "</style.css>; rel=preload")
                self.end_headers()
            self.send_response_only(status)
            all_headers: dict[str, str | None] = {"Content-Length": str(len(body)), **headers}
            for name, value in all_headers.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            if fault == "cut":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                return self._reset()
            if fault == "slow":
                self.wfile.write(body[:1])
                self.wfile.flush()
                time.sleep(site.faults.slow_s)
                body = body[1:]
            if fault == "trickle":
                for byte in body[:600]:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
            else:
                self.wfile.write(body)
            return None

        def _refuse(self, status: int) -> None:
            headers = {}
            if status in (429, 503) and site.faults.retry_after is not None:
                headers["Retry-After"] = site.faults.retry_after
            self._send(status, headers, b"no")

        def _reset(self) -> None:
            self.close_connection = True
            reset(self.connection)

    return Handler
