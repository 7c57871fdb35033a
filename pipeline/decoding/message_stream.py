"""Framed messages over a pipe, with a second pipe as the doorbell that wakes the receiver.

The receiver is not woken for each frame, but when enough data are queued. Queued data stay in the
kernel's pipe: they outlive the sender, which can no longer change them. The receiver trusts nothing
that arrives.
"""

import fcntl
import os
import select
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mediamill.pipeline.decoding.socket_messages import ConnectionClosedError, InvalidMessageError

_PREFIX = struct.Struct("!BII")  # flags, bytes of the header, bytes of the data
_SHARED, _LAST = 1, 2
_PIPE_BYTES = 1024**2  # capacity of the pipe, if the system grants it
_DEFAULT_PIPE_BYTES = 64 * 1024  # the capacity without the system's grant
_MAX_RINGS = 4096  # bytes of the doorbell that one read clears
_BUFFER = 128 * 1024  # bytes: many small frames in one read; large data bypass it
_MIN_READ = 8 * 1024  # bytes of the buffer that should be free


def create_pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """The receiver's file descriptors of the data pipe and the doorbell, then the sender's."""
    data, doorbell = os.pipe(), os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # this user's pipes have reached the system's limit
            fcntl.fcntl(data[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    for fd in (*data, *doorbell):
        os.set_blocking(fd, False)
    return (data[0], doorbell[0]), (data[1], doorbell[1])


class MessageFrame(NamedTuple):
    """One message.

    size: bytes of the data that follow the header in the pipe.
    shared: the data are in shared memory instead, and none follow.
    last: no more frames of this batch come.
    """

    header: bytes
    size: int
    shared: bool
    last: bool


class Sender:
    """The sending end. max_data_bytes: of one frame."""

    def __init__(self, pipe: int, doorbell: int) -> None:
        self._pipe = pipe
        self._doorbell = doorbell
        capacity = _DEFAULT_PIPE_BYTES
        if hasattr(fcntl, "F_GETPIPE_SZ"):
            capacity = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        self.max_data_bytes = capacity // 4
        self._ring_bytes = capacity // 2
        self._unannounced = 0  # bytes sent since the doorbell rang

    def send(
        self, header: bytes, data: Sequence[memoryview] = (), *, shared: bool, last: bool
    ) -> None:
        """Sends one frame. Raises ConnectionClosedError."""
        flags = _SHARED * shared | _LAST * last
        size = sum(part.nbytes for part in data)
        parts: list[bytes | memoryview] = [_PREFIX.pack(flags, len(header), size), header, *data]
        total = _PREFIX.size + len(header) + size
        sent = _write(self._pipe, parts)
        if sent < total:
            self._send_rest(memoryview(b"".join(parts))[sent:])
        self._unannounced += total
        if self._unannounced >= self._ring_bytes:
            self.ring()

    def ring(self) -> None:
        """Wakes the receiver. Raises ConnectionClosedError."""
        self._unannounced = 0
        _write(self._doorbell, [b"."])  # if it is full, the receiver is woken anyway

    def _send_rest(self, rest: memoryview) -> None:
        """Sends what the pipe had no space for, while the receiver reads from it."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLOUT)
        while rest:
            self.ring()
            poll.poll()
            rest = rest[_write(self._pipe, [rest]) :]


def _write(pipe: int, parts: Sequence[bytes | memoryview]) -> int:
    """Writes what fits into the pipe. Returns the number of bytes."""
    try:
        return os.writev(pipe, parts)
    except BlockingIOError:
        return 0
    except BrokenPipeError as error:
        raise ConnectionClosedError from error


class Receiver:
    """The receiving end."""

    def __init__(self, pipe: int, doorbell: int, max_header_bytes: int, timeout_s: float) -> None:
        """timeout_s: to wait for the rest of a frame that has begun."""
        self._pipe = FileIO(pipe)
        self._doorbell = FileIO(doorbell)
        self._max_header_bytes = max_header_bytes
        self._timeout_s = timeout_s
        self._buffer = bytearray(_BUFFER)
        self._start = self._stop = 0  # of the bytes in the buffer
        self._unread = 0  # bytes of the last frame's data
        self._large = False  # the last frame had large data, so the next ones may, too

    def close(self) -> None:
        """Closes both pipes."""
        self._pipe.close()
        self._doorbell.close()

    @property
    def doorbell(self) -> int:
        """A file descriptor, readable when the doorbell has rung or the sender has ended."""
        return self._doorbell.fileno()

    @property
    def is_idle(self) -> bool:
        """Whether the sender is alive and everything that it has sent is read."""
        if self._unread or self._start < self._stop:
            return False
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        return not poll.poll(0)

    def clear_doorbell(self) -> None:
        """Clears the notification: `doorbell` is readable again after the next ring."""
        self._doorbell.read(_MAX_RINGS)

    def next_frame(self) -> MessageFrame | None:
        """The next frame, or None when no more have arrived.

        Raises ConnectionClosedError, TimeoutError and InvalidMessageError, the latter also when
        data of the last frame are unread.
        """
        if self._unread:
            raise InvalidMessageError(f"found {self._unread} bytes after a frame's data")
        deadline: float | None = None
        while (frame := self._parse()) is None:
            if self._fill():
                continue
            if self._start == self._stop:
                return None
            deadline = self._wait(deadline)
        return frame

    def read_into(self, array: npt.NDArray[np.uint8]) -> None:
        """Fills the array with the next data of the last frame, which must have that many left.

        Raises ConnectionClosedError and TimeoutError.
        """
        assert array.size <= self._unread
        view, filled = array.data, min(array.size, self._stop - self._start)
        view[:filled] = memoryview(self._buffer)[self._start : self._start + filled]
        self._start += filled
        deadline: float | None = None
        while filled < array.size:
            if received := self._read(view[filled:]):
                filled += received
            else:
                deadline = self._wait(deadline)
        self._unread -= array.size

    def _parse(self) -> MessageFrame | None:
        """Returns the first frame of the buffer; if it is incomplete, reserves space for the rest
        and returns None.
        """
        available, needed = self._stop - self._start, _PREFIX.size
        if available >= needed:
            flags, header, data = _PREFIX.unpack_from(self._buffer, self._start)
            if header > self._max_header_bytes or data > _PIPE_BYTES or flags > _SHARED | _LAST:
                raise InvalidMessageError(f"found a frame of {header} and {data} bytes")
            needed += header
        if available < needed:
            self._reserve(needed)
            return None
        offset = self._start + _PREFIX.size
        self._start += needed
        self._unread, self._large = data, data > _BUFFER // 2
        text = bytes(memoryview(self._buffer)[offset : self._start])
        return MessageFrame(text, data, bool(flags & _SHARED), bool(flags & _LAST))

    def _reserve(self, size: int) -> None:
        """Makes room for `size` bytes in the buffer, counted from the first unread byte."""
        if len(self._buffer) - self._start >= max(size, _MIN_READ):
            return
        rest = bytes(memoryview(self._buffer)[self._start : self._stop])
        # The buffer shrinks again after one huge header.
        capacity = max(_BUFFER, size)
        if capacity != len(self._buffer):
            self._buffer = bytearray(capacity)
        self._buffer[: len(rest)] = rest
        self._start, self._stop = 0, len(rest)

    def _fill(self) -> bool:
        """Reads into the buffer. Returns whether bytes have arrived."""
        # Large data are not read into the buffer: `read_into` reads them without a copy.
        size = _MIN_READ if self._large else len(self._buffer)
        received = self._read(memoryview(self._buffer)[self._stop : self._stop + size])
        self._stop += received
        return received > 0

    def _read(self, target: memoryview) -> int:
        """Returns how many bytes have been read; 0 if none have arrived yet."""
        received = self._pipe.readinto(target)
        if received == 0:
            raise ConnectionClosedError
        return received or 0

    def _wait(self, deadline: float | None) -> float:
        """Waits for bytes until a deadline, which the first call sets, and returns it."""
        if deadline is None:
            deadline = time.monotonic() + self._timeout_s
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        return deadline
