"""An S3 server that lists many objects without holding them: keys are drawn from their numbers.

It also serves the files of a folder by ranges, and counts the bytes that it sends of them.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape


class DrawnKeys(Sequence):
    """`0000/IMG 0000000 ü&+%.jpg` and so on, in order. flat: without folders."""

    def __init__(self, count: int, per_folder: int = 10_000, flat: bool = False) -> None:
        self.count, self.per_folder, self.flat = count, per_folder, flat

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> str:
        folder = "all" if self.flat else f"{number // self.per_folder:04}"
        return f"{folder}/IMG {number:07} ü&+%.jpg"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: DrawnS3 = self.server
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        with server.lock:
            server.requests += 1
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        time.sleep(server.latency_s)
        try:
            if "list-type" in query:
                self._send(200, server.page(query).encode(), "application/xml")
            else:
                self._send_file(server)
        finally:
            with server.lock:
                server.in_flight -= 1

    def do_HEAD(self) -> None:
        server: DrawnS3 = self.server
        bucket, _, _ = self.path.strip("/").partition("/")
        path = server.path_of(self.path)
        if self.path.strip("/") == bucket:
            self._send(200, b"")
        elif path is None:
            self._send(404, b"")
        else:
            self.send_response(200)
            self._end_headers(path, path.stat().st_size)

    def _send_file(self, server: "DrawnS3") -> None:
        path = server.path_of(self.path)
        if path is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
            return
        size = path.stat().st_size
        first, last = 0, size - 1
        if wanted := self.headers.get("Range"):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        with path.open("rb") as file:
            file.seek(first)
            body = file.read(last + 1 - first)
        with server.lock:
            server.sent += len(body)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self._end_headers(path, len(body))
        self.wfile.write(body)

    def _end_headers(self, path: Path, size: int) -> None:
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def _send(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class DrawnS3(ThreadingHTTPServer):
    """keys: sorted by their UTF-8 bytes. latency_s: of each request, as that of a far server.

    folder: of the files that are the objects' content; None for objects without any.
    requests, most_in_flight: GET requests. sent: bytes of objects.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, keys: Sequence[str], latency_s: float = 0.0, folder: Path | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.keys, self.latency_s, self.folder = keys, latency_s, folder
        self.sent = 0
        self.lock = threading.Lock()
        self.requests = self.in_flight = self.most_in_flight = 0

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def path_of(self, url: str) -> Path | None:
        """The file of an object's URL."""
        key = unquote(urlsplit(url).path).strip("/").partition("/")[2]
        path = self.folder / key if self.folder is not None and key else None
        return path if path is not None and path.is_file() else None

    def page(self, query: dict[str, str]) -> str:
        """A page of ListObjectsV2. The token is the number of the next key."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        left = int(query.get("max-keys", 1000))
        number = int(query.get("continuation-token", self._first(prefix)))
        stop = self._first(prefix + "\U0010ffff")
        parts = []
        while number < stop and left:
            key = self.keys[number]
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                parts.append(
                    f"<Contents><Key>{_shown(key)}</Key><Size>{self._size(key)}</Size><ETag>&quot;e&quot;</ETag>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
                number += 1
            else:
                common = key[: end + len(delimiter)]
                parts.append(f"<CommonPrefixes><Prefix>{_shown(common)}</Prefix></CommonPrefixes>")
                number = self._first(common + "\U0010ffff")
            left -= 1
        more = number < stop
        token = f"<NextContinuationToken>{number}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>b</Name><Prefix>{_shown(prefix)}</Prefix><EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(parts)}"
            "</ListBucketResult>"
        )

    def _size(self, key: str) -> int:
        return 1 if self.folder is None else (self.folder / key).stat().st_size

    def _first(self, key: str) -> int:
        return bisect_left(self.keys, key.encode(), key=str.encode)


def _shown(key: str) -> str:
    return escape(quote(key, safe="/"))


@contextmanager
def serving(
    keys: Sequence[str], latency_s: float = 0.0, folder: Path | None = None
) -> Iterator[DrawnS3]:
    server = DrawnS3(keys, latency_s, folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
