"""Turns an http(s) URL into requests for its bytes, to addresses that have been checked.

Redirects are followed here, each hop checked anew; the connection goes to the address that was
checked, never to the name. Proxies of the environment are not used: a proxy looks names up itself,
and what it would reach could not be checked. Bodies are taken as they are: nothing is decompressed,
so that no few bytes can become many. How requests are tried again is not known.
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
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse

from mediamill.pipeline.fetching.addresses import (
    AddressRules,
    Resolver,
    Target,
    addresses,
    check_host,
    follow,
    parse,
    system_resolver,
)
from mediamill.pipeline.fetching.transfer import RangeReply
from mediamill.pipeline.storage.retries import ContentChangedError, Deadline, IncompleteError
from mediamill.schemas.errors import ErrorCode, RowError

# An address and port, and a timeout in seconds -> a connection. Raises OSError.
Connect = Callable[[tuple[str, int], float], socket.socket]

_REDIRECTS = 5
_CONNECT_S, _STALL_S = 10.0, 20.0  # without a byte, after which another try is more promising
_PIECE = 256 * 1024
_IDLE_PER_ORIGIN = 16
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_DIGESTS = {"md5": 16, "sha-256": 32}  # algorithms of Digest headers, and their lengths


class StatusError(OSError):
    """An answer that is not the file. `status` and `headers` are what it said."""

    def __init__(self, status: int, headers: HTTPMessage) -> None:
        super().__init__(f"the server said {status}")
        self.status, self.headers = status, headers


class HttpClient:
    """Connections of this process, kept open for the next request. Threads share it.

    resolve: finds a name's addresses. connect: makes a connection to a checked address and port.
    """

    def __init__(
        self,
        rules: AddressRules,
        resolve: Resolver = system_resolver,
        connect: Connect = socket.create_connection,
    ) -> None:
        self._rules, self._resolve, self._connect_to = rules, resolve, connect
        self._idle: defaultdict[tuple[str, str, int], deque[HTTPConnection]] = defaultdict(deque)
        self._mutex = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    @contextmanager
    def get(
        self, target: Target, headers: dict[str, str], deadline: Deadline
    ) -> Iterator[tuple[HTTPResponse, Target]]:
        """The answer to one request, after its redirects, and who gave it.

        Raises RowError, fetch_denied; OSError or HTTPException when the connection fails.
        """
        for _ in range(_REDIRECTS + 1):
            with self._exchange(target, headers, deadline) as answer:
                location = answer.headers.get("Location")
                if answer.status not in (301, 302, 303, 307, 308) or location is None:
                    yield answer, target
                    return
            target = follow(target, location)
        raise RowError(
            ErrorCode.FETCH_DENIED, f"found more than {_REDIRECTS} redirects, expected fewer"
        )

    @contextmanager
    def _exchange(
        self, target: Target, headers: dict[str, str], deadline: Deadline
    ) -> Iterator[HTTPResponse]:
        check_host(target.host, self._rules)
        connection = self._connection(target, deadline)
        keep = False
        try:
            with _ends_at(deadline, connection.sock):
                _send(connection, target, headers, deadline)
                with connection.getresponse() as answer:
                    yield answer
                    keep = _is_finished(answer)
        finally:
            if keep:
                self._put_back(target, connection)
            else:
                connection.close()

    def _connection(self, target: Target, deadline: Deadline) -> HTTPConnection:
        """An idle connection, whose address was checked when it was made, or a new one."""
        while True:
            with self._mutex:
                idle = self._idle[target.origin]
                connection = idle.pop() if idle else None
            if connection is None:
                return self._connect(target, deadline)
            if not _has_ended(connection.sock):
                return connection
            connection.close()

    def _connect(self, target: Target, deadline: Deadline) -> HTTPConnection:
        last: Exception | None = None
        for address in addresses(target, self._rules, self._resolve):
            deadline.check()
            connection = HTTPConnection(target.host, target.port)
            try:
                connection.sock = self._socket(target, address, deadline)
            except OSError as error:
                last = error
            else:
                return connection
        deadline.check()
        assert last is not None  # there is at least one address
        try:
            raise last
        finally:
            del last  # its traceback leads here, and would keep this call's data alive

    def _socket(self, target: Target, address: str, deadline: Deadline) -> socket.socket:
        timeout = min(_CONNECT_S, max(deadline.left_s, 0.001))
        plain = self._connect_to((address, target.port), timeout)
        if target.scheme == "http":
            return plain
        # The handshake apart, or nothing could end one that comes byte by byte.
        secure = self._tls.wrap_socket(
            plain, server_hostname=target.host, do_handshake_on_connect=False
        )
        try:
            with _ends_at(deadline, secure):
                secure.do_handshake()
        except BaseException:
            secure.close()
            raise
        return secure

    def _put_back(self, target: Target, connection: HTTPConnection) -> None:
        with self._mutex:
            idle = self._idle[target.origin]
            idle.append(connection)
            surplus = idle.popleft() if len(idle) > _IDLE_PER_ORIGIN else None
        if surplus is not None:
            surplus.close()


class HttpSource:
    """One URL. `Source` says what its methods do. Raises RowError where the URL is not allowed."""

    def __init__(self, url: str, client: HttpClient) -> None:
        self._target = parse(url)
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
        with self._client.get(self._target, headers, deadline) as (answer, _):
            yield _read(answer, start)

    def confirm(self, version: str | None, deadline: Deadline) -> None:
        """Each answer has its version."""

    def renew(self) -> bool:
        """A URL's login does not change."""
        return False

    def distrust_digest(self) -> None:
        """Stated digests are certain."""


def _close_all(idle: dict[tuple[str, str, int], deque[HTTPConnection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()


def _send(
    connection: HTTPConnection, target: Target, headers: dict[str, str], deadline: Deadline
) -> None:
    connection.sock.settimeout(min(_STALL_S, max(deadline.left_s, 0.001)))
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


def _read(answer: HTTPResponse, asked: int) -> RangeReply:
    """What an answer says of the content, and its body."""
    headers = answer.headers
    if answer.status not in (200, 206):
        raise StatusError(answer.status, headers)
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise RowError(
            ErrorCode.FETCH_FAILED,
            "found a compressed answer although none was asked for, expected the file as it is",
        )
    length = _length(headers)
    version = headers.get("ETag") or headers.get("Last-Modified")
    if version is not None and version.startswith("W/"):
        version = headers.get("Last-Modified")  # a weak tag is no promise of the same bytes
    if answer.status == 200:
        return RangeReply(
            0, length, False, _pieces(answer, length), version, _digest(headers, True)
        )
    found = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if found is None:
        raise IncompleteError("got a part of the file that does not say which")
    start, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    if last < start or (total is not None and last >= total):
        raise IncompleteError("got a part of the file that cannot be")
    if total is None:
        raise IncompleteError("got a part of the file without the whole's size")
    if start != asked:
        raise ContentChangedError("got another part of the file than was asked for")
    whole = start == 0 and last + 1 == total
    pieces = _pieces(answer, last + 1 - start)
    return RangeReply(start, total, True, pieces, version, _digest(headers, whole))


def _pieces(answer: HTTPResponse, length: int | None) -> Iterator[bytes]:
    """The body. Raises IncompleteError when it is shorter or longer than `length`."""
    got = 0
    while piece := answer.read1(_PIECE):
        got += len(piece)
        if length is not None and got > length:
            raise IncompleteError("got more bytes than were announced")
        yield piece
    if length is not None and got < length:
        raise IncompleteError(f"got {got} of {length} bytes")


def _length(headers: HTTPMessage) -> int | None:
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        return None
    stated = headers.get("Content-Length", "")
    return int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 19 else None


def _digest(headers: HTTPMessage, whole: bool) -> tuple[str, bytes] | None:
    """A checksum of the whole content, where the answer states one in a way that we know."""
    stated: dict[str, str] = {}
    for name in ("Digest", "Repr-Digest", "X-Goog-Hash"):
        for one in headers.get(name, "").split(","):
            algorithm, _, text = one.strip().partition("=")
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


def _is_finished(answer: HTTPResponse) -> bool:
    """Whether the whole body was read, and the server keeps the connection."""
    at_the_end = answer.isclosed() if answer.chunked else answer.length == 0
    return at_the_end and not answer.will_close


def _has_ended(sock: socket.socket) -> bool:
    """Whether an idle connection was closed by the other side, or says what nobody asked for."""
    readable, _, _ = select.select([sock], [], [], 0)
    return bool(readable)


@contextmanager
def _ends_at(deadline: Deadline, sock: socket.socket) -> Iterator[None]:
    """Cuts the connection when the time is over: a socket's own timeout begins anew with each byte.

    Raises TimeoutError then, whatever the cut looked like.
    """
    over = threading.Event()

    def cut() -> None:
        while (left := deadline.left_s) > 0:  # it may have moved on
            if over.wait(left):
                return
        with contextlib.suppress(OSError):
            # Of the socket, not of its TLS: another thread is reading from that.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    threading.Thread(target=cut, name="fetch-deadline", daemon=True).start()
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:
        if deadline.left_s <= 0:
            raise TimeoutError("took too long") from error
        raise
    finally:
        over.set()
