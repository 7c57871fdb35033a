"""Turns answers into a stream of parcels from one process to another, and back.

Who listens is not woken for each: a bell rings when it is worth it. What has been sent lies with
the system, where its sender can neither change it nor take it back, and where it stays when the
sender dies. What parcels mean is not known here; who listens trusts nothing that arrives.
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

from mediamill.pipeline.decoding.socket_messages import GarbledError, GoneError

_PREFIX = struct.Struct("!BII")  # flags, bytes of the header, bytes of the data
_SHARED, _LAST = 1, 2
_QUEUE = 1024**2  # bytes that may wait for who listens, if the system gives as many
_USUAL = 64 * 1024  # bytes that it gives in any case
_RINGS = 4096  # of the bell that are heard at once
_BUFFER = 128 * 1024  # bytes: small parcels come many at once, large ones go where they belong
_LEAST = 8 * 1024  # bytes of it that should be free to be read into


def pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """Two handles for who listens, and two for who sends: of parcels and of the bell."""
    parcels, bell = os.pipe(), os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # this user has many
            fcntl.fcntl(parcels[1], fcntl.F_SETPIPE_SZ, _QUEUE)
    for handle in (*parcels, *bell):
        os.set_blocking(handle, False)
    return (parcels[0], bell[0]), (parcels[1], bell[1])


class Frame(NamedTuple):
    """header: text of a form that both ends know. size: bytes of the data that come after it.

    shared: there are none, they lie in the memory that both ends share. last: nothing more comes.
    """

    header: bytes
    size: int
    shared: bool
    last: bool


class Sender:
    """The end that answers."""

    def __init__(self, parcels: int, bell: int) -> None:
        self._parcels = parcels
        self._bell = bell
        queue = _USUAL
        if hasattr(fcntl, "F_GETPIPE_SZ"):
            queue = fcntl.fcntl(parcels, fcntl.F_GETPIPE_SZ)
        self.most = queue // 4  # bytes of the data of one parcel
        self._loud = queue // 2
        self._silent = 0  # bytes since the bell rang

    def send(
        self, header: bytes, data: Sequence[memoryview] = (), *, shared: bool, last: bool
    ) -> None:
        """Sends one parcel, whose data are at most `most` bytes. Raises GoneError."""
        flags = _SHARED * shared | _LAST * last
        size = sum(part.nbytes for part in data)
        parts: list[bytes | memoryview] = [_PREFIX.pack(flags, len(header), size), header, *data]
        whole = _PREFIX.size + len(header) + size
        try:
            sent = os.writev(self._parcels, parts)
        except BlockingIOError:
            sent = 0
        except BrokenPipeError as error:
            raise GoneError from error
        if sent < whole:
            self._finish(memoryview(b"".join(parts))[sent:])
        self._silent += whole
        if self._silent >= self._loud:
            self.ring()

    def ring(self) -> None:
        """Wakes who listens. Raises GoneError."""
        self._silent = 0
        try:
            os.write(self._bell, b".")
        except BlockingIOError:  # it is ringing
            return
        except BrokenPipeError as error:
            raise GoneError from error

    def _finish(self, rest: memoryview) -> None:
        """Sends what the queue had no room for: whoever listens has to take from it first."""
        poll = select.poll()
        poll.register(self._parcels, select.POLLOUT)
        while rest:
            self.ring()
            poll.poll()
            try:
                rest = rest[os.write(self._parcels, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise GoneError from error


class Receiver:
    """The end that listens."""

    def __init__(self, parcels: int, bell: int, most: int, patience_s: float) -> None:
        """most: bytes of a parcel's header that are taken. patience_s: for the rest of a parcel
        that has begun.
        """
        self._parcels = FileIO(parcels)
        self._bell = FileIO(bell)
        self._most = most
        self._patience_s = patience_s
        self._buffer = bytearray(_BUFFER)
        self._start = self._stop = 0  # of what is in the buffer
        self._data = 0  # bytes of the last parcel that have not been read
        self._large = False  # it, as those that follow may be

    def close(self) -> None:
        """Ends the use here."""
        self._parcels.close()
        self._bell.close()

    @property
    def bell(self) -> int:
        """A handle that is readable when the bell has rung, or never will again."""
        return self._bell.fileno()

    @property
    def is_idle(self) -> bool:
        """Whether the other end is there and has nothing to say."""
        if self._data or self._start < self._stop:
            return False
        poll = select.poll()
        poll.register(self._parcels, select.POLLIN)
        return not poll.poll(0)

    def hear(self) -> None:
        """Has the bell be silent until it rings again."""
        self._bell.read(_RINGS)

    def take(self) -> Frame | None:
        """The next parcel, or None when no more has come.

        Raises GoneError, GarbledError, also when data of the last one are left, and TimeoutError.
        """
        if self._data:
            raise GarbledError(f"found {self._data} bytes after a parcel's data")
        deadline: float | None = None
        while (parcel := self._next()) is None:
            if self._fill():
                continue
            if self._start == self._stop:
                return None
            deadline = self._wait(deadline)
        return parcel

    def read_into(self, array: npt.NDArray[np.uint8]) -> None:
        """The next data of the last parcel, which has as many. Raises GoneError, TimeoutError."""
        assert array.size <= self._data
        view, at = array.data, min(array.size, self._stop - self._start)
        view[:at] = memoryview(self._buffer)[self._start : self._start + at]
        self._start += at
        deadline: float | None = None
        while at < array.size:
            if got := self._read(view[at:]):
                at += got
            else:
                deadline = self._wait(deadline)
        self._data -= array.size

    def _next(self) -> Frame | None:
        """The first parcel in the buffer; None, and room for the rest, when it is not all there."""
        found, wanted = self._stop - self._start, _PREFIX.size
        if found >= wanted:
            flags, header, data = _PREFIX.unpack_from(self._buffer, self._start)
            if header > self._most or data > _QUEUE or flags > _SHARED | _LAST:
                raise GarbledError(f"found a parcel of {header} and {data} bytes")
            wanted += header
        if found < wanted:
            self._make_room(wanted)
            return None
        at = self._start + _PREFIX.size
        self._start += wanted
        self._data, self._large = data, data > _BUFFER // 2
        text = bytes(memoryview(self._buffer)[at : self._start])
        return Frame(text, data, bool(flags & _SHARED), bool(flags & _LAST))

    def _make_room(self, wanted: int) -> None:
        """Has so many bytes, from the first that is not taken yet, fit into the buffer."""
        if len(self._buffer) - self._start >= max(wanted, _LEAST):
            return
        rest = bytes(memoryview(self._buffer)[self._start : self._stop])
        # One huge header is no reason to keep as much for good; small ones have always the same.
        size = max(_BUFFER, wanted)
        if size != len(self._buffer):
            self._buffer = bytearray(size)
        self._buffer[: len(rest)] = rest
        self._start, self._stop = 0, len(rest)

    def _fill(self) -> bool:
        """Whether bytes have come into the buffer."""
        # What is large is not to come here, but where it belongs.
        most = _LEAST if self._large else len(self._buffer)
        got = self._read(memoryview(self._buffer)[self._stop : self._stop + most])
        self._stop += got
        return got > 0

    def _read(self, room: memoryview) -> int:
        """Bytes that have come; 0 = none yet."""
        got = self._parcels.readinto(room)
        if got == 0:
            raise GoneError
        return got or 0

    def _wait(self, deadline: float | None) -> float:
        """For bytes, or their end, until a deadline, which begins with the first wait."""
        if deadline is None:
            deadline = time.monotonic() + self._patience_s
        poll = select.poll()
        poll.register(self._parcels, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        return deadline
