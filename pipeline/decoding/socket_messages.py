"""Length-prefixed JSON messages with file descriptors, between two processes over a Unix socket.

Nothing that arrives is trusted: every length is checked against a limit before memory is allocated.
The replies of a worker do not come this way, see message_stream.py.
"""

import json
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_MAX_FDS = 8  # that may come with one read; a message has four at most
_PREFIX = struct.Struct("!IB")  # bytes of the JSON, number of file descriptors
_FD_BYTES = struct.calcsize("i")


class ConnectionClosedError(Exception):
    """The other end is closed: its process has ended."""


class InvalidMessageError(Exception):
    """What arrived is not a message, or exceeds a limit."""


class Message(NamedTuple):
    """content: the parsed JSON. fds: file descriptors, which the receiver has to close."""

    content: Any
    fds: tuple[int, ...]


def send(
    connection: socket.socket,
    content: Mapping[str, Any],
    deadline: float | None = None,
    fds: Sequence[int] = (),
) -> None:
    """Sends one message. deadline: in seconds of time.monotonic.

    Raises ConnectionClosedError and TimeoutError.
    """
    text = json.dumps(content).encode()
    data = memoryview(_PREFIX.pack(len(text), len(fds)) + text)
    try:
        _set_timeout(connection, deadline)
        rest = data[socket.send_fds(connection, [data], fds) :]
        if rest:
            _set_timeout(connection, deadline)
            connection.sendall(rest)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ConnectionClosedError from error


def receive(
    connection: socket.socket,
    max_bytes: int,
    deadline: float | None = None,
    max_fds: int = 0,
) -> Message:
    """Returns the next message. deadline: in seconds of time.monotonic.

    max_bytes: of its JSON. max_fds: of its file descriptors.
    Raises ConnectionClosedError, InvalidMessageError, TimeoutError, and ValueError for no JSON.
    """
    fds: list[int] = []
    try:
        size, count = _PREFIX.unpack(_read_exactly(connection, _PREFIX.size, deadline, fds))
        if size > max_bytes:
            raise InvalidMessageError(
                f"found a message of {size} bytes, expected at most {max_bytes}"
            )
        text = _read_exactly(connection, size, deadline, fds)
        if count > max_fds or len(fds) != count:
            raise InvalidMessageError(
                f"found {len(fds)} file descriptors, expected {count} and at most {max_fds}"
            )
        return Message(json.loads(text), tuple(fds))
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, ConnectionResetError):
            raise ConnectionClosedError from error
        raise


def _set_timeout(connection: socket.socket, deadline: float | None) -> None:
    """Limits the next call to the time that is left."""
    if deadline is None:
        connection.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def _read_exactly(
    connection: socket.socket, count: int, deadline: float | None, fds: list[int]
) -> bytearray:
    """Returns `count` bytes, and appends the file descriptors that come with them to `fds`."""
    data, filled = bytearray(count), 0
    view = memoryview(data)
    ancillary_bytes = socket.CMSG_SPACE(_MAX_FDS * _FD_BYTES)
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    while filled < count:
        _set_timeout(connection, deadline)
        received, ancillary, _, _ = connection.recvmsg_into([view[filled:]], ancillary_bytes, flags)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = content[: len(content) - len(content) % _FD_BYTES]
                fds.extend(fd for (fd,) in struct.iter_unpack("i", whole))
        if not received:
            raise ConnectionClosedError
        filled += received
    return data
