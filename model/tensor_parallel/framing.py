"""Sends and receives frames on a pipe between two processes of one machine.

A frame is its kind (one byte), its length (eight bytes) and its body.
"""

import struct
from typing import IO

_HEADER = struct.Struct("!cQ")
_MAX_BYTES = 1 << 40  # a longer frame is a sign of a broken stream


def send(pipe: IO[bytes], kind: bytes, *parts: bytes | memoryview) -> None:
    """Writes one frame. Raises OSError when the other end of the pipe is closed."""
    pipe.write(_HEADER.pack(kind, sum(len(part) for part in parts)))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[bytes, bytes] | None:
    """Returns the kind and the body of the next frame.

    Returns None at the end of the stream, also within a frame. Raises ValueError for a header that
    cannot be one.
    """
    header = pipe.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    kind, size = _HEADER.unpack(header)
    if size > _MAX_BYTES:
        raise ValueError(f"found a frame of {size} bytes")
    body = pipe.read(size)
    return (kind, body) if len(body) == size else None
