"""Turns bytes into frames on a pipe between two processes of one machine, and back.

A frame is its kind (one byte), its length and its bytes. What they mean is not known here.
"""

import struct
from typing import IO

_HEAD = struct.Struct("!cQ")
_MOST = 1 << 40  # bytes: more is no frame of ours


def send(pipe: IO[bytes], kind: bytes, *parts: bytes | memoryview) -> None:
    """Write one frame whole. Raises OSError when nobody reads any more."""
    pipe.write(_HEAD.pack(kind, sum(len(part) for part in parts)))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[bytes, bytes] | None:
    """The next frame: kind and bytes. None at the end, also when it comes within a frame.

    Raises ValueError for what is no frame.
    """
    head = pipe.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    kind, size = _HEAD.unpack(head)
    if size > _MOST:
        raise ValueError(f"found a frame of {size} bytes")
    body = pipe.read(size)
    return (kind, body) if len(body) == size else None
