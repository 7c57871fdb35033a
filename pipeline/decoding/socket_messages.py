"""Turns headers and handles into messages between two processes of one machine, and back.

What they mean is not known here, and nothing that arrives is trusted: every length is held against
a ceiling before memory is taken. The answers to a message are parcels, see parcels.py.
"""

import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

_HANDLES = 8  # that may come with one piece; a message has four at most
_PREFIX = struct.Struct("!IB")  # bytes of the header, number of handles
_NUMBER = struct.calcsize("i")


class GoneError(Exception):
    """The other end is closed: its process has ended."""


class GarbledError(Exception):
    """What came is no message, or beyond a ceiling."""


@dataclass(frozen=True)
class Message:
    """header: text of a form that both ends know. handles: of open files and sockets that came
    with it; its receiver closes them.
    """

    header: bytes
    handles: tuple[int, ...] = ()


def send(
    link: socket.socket, header: bytes, deadline: float | None = None, handles: Sequence[int] = ()
) -> None:
    """Sends one message. deadline: in seconds of time.monotonic.

    Raises GoneError and TimeoutError.
    """
    data = memoryview(_PREFIX.pack(len(header), len(handles)) + header)
    try:
        _wait(link, deadline)
        rest = data[socket.send_fds(link, [data], handles) :]
        if rest:
            _wait(link, deadline)
            link.sendall(rest)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise GoneError from error


def receive(
    link: socket.socket, most: int, deadline: float | None = None, handles: int = 0
) -> Message:
    """The next message.

    most: bytes of the header that are taken. deadline: in seconds of time.monotonic. handles: that
    may come with it. Raises GoneError, GarbledError and TimeoutError.
    """
    found: list[int] = []
    try:
        size, count = _PREFIX.unpack(_exactly(link, _PREFIX.size, deadline, found))
        if size > most:
            raise GarbledError(f"found a message of {size} bytes, expected at most {most}")
        header = bytes(_exactly(link, size, deadline, found))
        if count > handles or len(found) != count:
            raise GarbledError(f"found {len(found)} handles, expected {count} of {handles}")
    except BaseException as error:
        for handle in found:
            os.close(handle)
        if isinstance(error, ConnectionResetError):
            raise GoneError from error
        raise
    return Message(header, tuple(found))


def _wait(link: socket.socket, deadline: float | None) -> None:
    """Gives the next call the time that is left."""
    if deadline is None:
        link.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    link.settimeout(left)


def _exactly(
    link: socket.socket, count: int, deadline: float | None, handles: list[int]
) -> bytearray:
    data, at = bytearray(count), 0
    view = memoryview(data)
    space = socket.CMSG_SPACE(_HANDLES * _NUMBER)
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    while at < count:
        _wait(link, deadline)
        got, ancillary, _, _ = link.recvmsg_into([view[at:]], space, flags)
        for level, kind, found in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = found[: len(found) - len(found) % _NUMBER]
                handles.extend(one for (one,) in struct.iter_unpack("i", whole))
        if not got:
            raise GoneError
        at += got
    return data
