"""Length-prefixed messages with file descriptors, between two processes over a Unix socket.

Nothing that arrives is trusted: every length is checked against a limit before memory is allocated.
The replies of a worker do not come this way, see message_stream.py.
"""

import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_FDS = 8  # that may come with one read; a message has four at most
_PREFIX = struct.Struct("!IB")  # bytes of the header, number of file descriptors
_FD_BYTES = struct.calcsize("i")


class ConnectionClosedError(Exception):
    """The other end is closed: its process has ended."""


class InvalidMessageError(Exception):
    """What arrived is not a message, or exceeds a limit."""


@dataclass(frozen=True)
class Message:
    """header: text in a format that both ends know. fds: file descriptors that came with it; the
    receiver closes them.
    """

    header: bytes
    fds: tuple[int, ...] = ()


def send(
    connection: socket.socket,
    header: bytes,
    deadline: float | None = None,
    fds: Sequence[int] = (),
) -> None:
    """Sends one message. deadline: in seconds of time.monotonic.

    Raises ConnectionClosedError and TimeoutError.
    """
    data = memoryview(_PREFIX.pack(len(header), len(fds)) + header)
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
    max_header_bytes: int,
    deadline: float | None = None,
    max_fds: int = 0,
) -> Message:
    """Returns the next message. deadline: in seconds of time.monotonic.

    Raises ConnectionClosedError, InvalidMessageError and TimeoutError.
    """
    fds: list[int] = []
    try:
        size, count = _PREFIX.unpack(_read_exactly(connection, _PREFIX.size, deadline, fds))
        if size > max_header_bytes:
            raise InvalidMessageError(
                f"found a message of {size} bytes, expected at most {max_header_bytes}"
            )
        header = bytes(_read_exactly(connection, size, deadline, fds))
        if count > max_fds or len(fds) != count:
            raise InvalidMessageError(
                f"found {len(fds)} file descriptors, expected {count} and at most {max_fds}"
            )
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, ConnectionResetError):
            raise ConnectionClosedError from error
        raise
    return Message(header, tuple(fds))


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
    """So many bytes; appends the file descriptors that come with them to `fds`."""
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
