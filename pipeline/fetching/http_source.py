"""Requests byte ranges of http(s) URLs, at addresses that have been checked.

Each redirect is checked too; connections go to the checked address, never to the name. Proxies of
the environment are not used: a proxy looks names up itself, so what it would reach cannot be
checked. Bodies are not decompressed, so that a few bytes cannot become many.
"""

import base64
import binascii
import contextlib
import re
import select
import socket
import ssl
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    parse_headers,
)

from mediamill.pipeline.fetching.addresses import (
    AddressRules,
    Resolver,
    Target,
    check_host,
    follow_redirect,
    parse_url,
    resolve_addresses,
    system_resolver,
)
from mediamill.pipeline.fetching.transfer import RangeReply, Source
from mediamill.pipeline.storage.retries import ContentChangedError, Deadline, IncompleteError
from mediamill.schemas.errors import ErrorCode, RowError

# (address, port), timeout in seconds -> a connection. Raises OSError.
Connector = Callable[[tuple[str, int], float], socket.socket]

_MAX_REDIRECTS = 5
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 20.0  # without a byte; then a retry is better
_CHUNK_BYTES = 256 * 1024
_MAX_IDLE_PER_ORIGIN = 16
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_DIGESTS = {"md5": 16, "sha-256": 32}  # algorithms of Digest headers, and lengths in bytes


class StatusError(OSError):
    """A response that is not the file."""

    def __init__(self, status: int, headers: HTTPMessage) -> None:
        super().__init__(f"the server answered {status}")
        self.status, self.headers = status, headers


class _FinalResponse(HTTPResponse):
    """A response without the interim ones before it, such as 103 Early Hints."""

    def _read_status(self) -> tuple[str, int, str]:
        # http.client itself passes over 100 alone. The deadline ends a server that sends no end.
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 101 < status < 200:
                return version, status, reason
            parse_headers(self.fp)


class _Connection(HTTPConnection):
    response_class = _FinalResponse


class HttpClient:
    """A pool of this process's connections. Threads share it.

    resolve: looks up the addresses of a name.
    connect: opens a connection to a checked address and port.
    """

    def __init__(
        self,
        rules: AddressRules,
        resolve: Resolver = system_resolver,
        connect: Connector = socket.create_connection,
    ) -> None:
        self._rules, self._resolve, self._connector = rules, resolve, connect
        self._idle: defaultdict[tuple[str, str, int], deque[HTTPConnection]] = defaultdict(deque)
        self._mutex = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    @contextmanager
    def get(
        self, target: Target, headers: dict[str, str], deadline: Deadline
    ) -> Iterator[HTTPResponse]:
        """Sends a request and follows redirects; yields the last response.

        Raises RowError, fetch_denied; OSError or HTTPException when the connection fails.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            with self._exchange(target, headers, deadline) as response:
                location = response.headers.get("Location")
                if response.status not in (301, 302, 303, 307, 308) or location is None:
                    yield response
                    return
            target = follow_redirect(target, location)
        raise RowError(
            ErrorCode.FETCH_DENIED, f"found more than {_MAX_REDIRECTS} redirects, expected fewer"
        )

    @contextmanager
    def _exchange(
        self, target: Target, headers: dict[str, str], deadline: Deadline
    ) -> Iterator[HTTPResponse]:
        check_host(target.host, self._rules)
        connection = self._connection(target, deadline)
        reusable = False
        try:
            with _cut_at(deadline, connection.sock):
                _send(connection, target, headers, deadline)
                with connection.getresponse() as response:
                    yield response
                    reusable = _is_reusable(response)
        finally:
            if reusable:
                self._put_back(target, connection)
            else:
                connection.close()

    def _connection(self, target: Target, deadline: Deadline) -> HTTPConnection:
        """Returns an idle connection, checked when it was opened, or a new one."""
        while True:
            with self._mutex:
                idle = self._idle[target.origin]
                connection = idle.pop() if idle else None
            if connection is None:
                return self._connect(target, deadline)
            readable, _, _ = select.select([connection.sock], [], [], 0)
            if not readable:  # the server has neither closed it nor sent data without a request
                return connection
            connection.close()

    def _connect(self, target: Target, deadline: Deadline) -> HTTPConnection:
        failure: Exception | None = None
        for address in resolve_addresses(target, self._rules, self._resolve):
            deadline.check()
            connection = _Connection(target.host, target.port)
            try:
                connection.sock = self._open_socket(target, address, deadline)
            except OSError as error:
                failure = error
            else:
                return connection
        deadline.check()
        assert failure is not None  # there is at least one address
        try:
            raise failure
        finally:
            del failure  # its traceback refers to this frame, and would keep the call's data

    def _open_socket(self, target: Target, address: str, deadline: Deadline) -> socket.socket:
        timeout = min(_CONNECT_TIMEOUT_S, max(deadline.left_s, 0.001))
        tcp_socket = self._connector((address, target.port), timeout)
        if target.scheme == "http":
            return tcp_socket
        # A separate handshake, so that the deadline ends one that arrives byte by byte.
        tls_socket = self._tls.wrap_socket(
            tcp_socket, server_hostname=target.host, do_handshake_on_connect=False
        )
        try:
            with _cut_at(deadline, tls_socket):
                tls_socket.do_handshake()
        except BaseException:
            tls_socket.close()
            raise
        return tls_socket

    def _put_back(self, target: Target, connection: HTTPConnection) -> None:
        with self._mutex:
            idle = self._idle[target.origin]
            idle.append(connection)
            surplus = idle.popleft() if len(idle) > _MAX_IDLE_PER_ORIGIN else None
        if surplus is not None:
            surplus.close()


class HttpSource(Source):
    """The `Source` of one URL. Raises RowError if the URL is not allowed."""

    def __init__(self, url: str, client: HttpClient) -> None:
        self._target = parse_url(url)
        self._client = client

    @contextmanager
    def open(
        self, start: int, stop: int | None, version: str | None, deadline: Deadline
    ) -> Iterator[RangeReply]:
        headers = {}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if version is not None and start:
                headers["If-Range"] = version
        with self._client.get(self._target, headers, deadline) as response:
            yield _reply(response, start)


def _close_all(idle: dict[tuple[str, str, int], deque[HTTPConnection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()


def _send(
    connection: HTTPConnection, target: Target, headers: dict[str, str], deadline: Deadline
) -> None:
    connection.sock.settimeout(min(_READ_TIMEOUT_S, max(deadline.left_s, 0.001)))
    all_headers = {
        "Host": target.host_header,
        "User-Agent": "mediamill",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        **headers,
    }
    if target.login is not None:
        all_headers["Authorization"] = f"Basic {target.login}"
    connection.request("GET", target.path, headers=all_headers)


def _reply(response: HTTPResponse, requested: int) -> RangeReply:
    """Checks a response; returns its body and what its headers report of the content."""
    headers = response.headers
    if response.status >= 400:
        raise StatusError(response.status, headers)
    if response.status not in (200, 206):
        raise IncompleteError(f"the server answered {response.status}, expected the file")
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise RowError(
            ErrorCode.FETCH_FAILED,
            "found a compressed response, expected the file without compression",
        )
    length = _length(headers)
    version = headers.get("ETag") or headers.get("Last-Modified")
    if version is not None and version.startswith("W/"):
        version = headers.get("Last-Modified")  # a weak ETag does not guarantee the same bytes
    if response.status == 200:
        return RangeReply(
            0, length, False, _chunks(response, length), version, _digest(headers, True)
        )
    content_range = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if content_range is None:
        raise IncompleteError("got a part of the file without a valid Content-Range")
    start, last = int(content_range[1]), int(content_range[2])
    if content_range[3] == "*":
        raise IncompleteError("got a part of the file without the size of the whole file")
    total = int(content_range[3])
    if not start <= last < total:
        raise IncompleteError("got a part of the file with an impossible Content-Range")
    if start != requested:
        raise ContentChangedError("got another part of the file than was requested")
    whole = start == 0 and last + 1 == total
    chunks = _chunks(response, last + 1 - start)
    return RangeReply(start, total, True, chunks, version, _digest(headers, whole))


def _chunks(response: HTTPResponse, length: int | None) -> Iterator[bytes]:
    """Yields the body. Raises IncompleteError if it is shorter or longer than `length`."""
    received = 0
    while chunk := response.read1(_CHUNK_BYTES):
        received += len(chunk)
        if length is not None and received > length:
            raise IncompleteError("got more bytes than were announced")
        yield chunk
    if length is not None and received < length:
        raise IncompleteError(f"got {received} of {length} bytes")


def _length(headers: HTTPMessage) -> int | None:
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        return None
    stated = headers.get("Content-Length", "")
    return int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 19 else None


def _digest(headers: HTTPMessage, whole: bool) -> tuple[str, bytes] | None:
    """The algorithm and value of a checksum of the whole content, if a header has one."""
    stated: dict[str, str] = {}
    for name in ("Digest", "Repr-Digest", "X-Goog-Hash"):
        for item in headers.get(name, "").split(","):
            algorithm, _, text = item.strip().partition("=")
            stated[algorithm.lower()] = text.strip(":")
    if whole and "Content-MD5" in headers:
        stated["md5"] = headers["Content-MD5"].strip()
    for algorithm, size in _DIGESTS.items():
        try:
            value = base64.b64decode(stated.get(algorithm, ""), validate=True)
        except binascii.Error:
            continue
        if len(value) == size:
            return algorithm.replace("-", ""), value
    return None


def _is_reusable(response: HTTPResponse) -> bool:
    """Whether the whole body was read and the server keeps the connection open."""
    at_end = response.isclosed() if response.chunked else response.length == 0
    return at_end and not response.will_close


@contextmanager
def _cut_at(deadline: Deadline, sock: socket.socket) -> Iterator[None]:
    """Shuts the connection down at the deadline: a socket's own timeout restarts with each byte.

    Raises TimeoutError after the deadline, whichever error the shutdown caused.
    """
    finished = threading.Event()

    def cut() -> None:
        while (left_s := deadline.left_s) > 0:  # a pause may have extended the deadline
            if finished.wait(left_s):
                return
        with contextlib.suppress(OSError):
            # The plain socket's method: another thread reads from the TLS layer.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    threading.Thread(target=cut, name="fetch-deadline", daemon=True).start()
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:
        if deadline.left_s <= 0:
            raise TimeoutError("took too long") from error
        raise
    finally:
        finished.set()
