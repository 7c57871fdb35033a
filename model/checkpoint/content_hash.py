"""Computes the hash by which a checkpoint, and each copy of it, is recognized.

Files up to 64 MiB are hashed whole. Of larger ones, which are weights, the hash covers the size,
the first MiB and 32 evenly spaced samples of 64 KiB: training or quantizing changes every tensor,
and the header names each.
"""

import hashlib
from collections.abc import Callable, Mapping

_WHOLE_BYTES = 64 * 1024 * 1024
_SAMPLES, _SAMPLE_BYTES = 32, 64 * 1024
_HEAD_BYTES = 1024 * 1024  # holds the safetensors header: names, types and shapes


def content_hash(sizes: Mapping[str, int], read: Callable[[str, int, int], bytes]) -> str:
    """Returns the hash of files, 32 hex digits.

    sizes: bytes of each file by its name.
    read: called as read(name, start, stop), returns the bytes from `start` up to `stop` of a file.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, size in sorted(sizes.items()):
        digest.update(f"{name}\0{size}\0".encode())
        if size <= _WHOLE_BYTES:
            digest.update(read(name, 0, size) if size else b"")
            continue
        digest.update(read(name, 0, _HEAD_BYTES))
        span = size - _HEAD_BYTES - _SAMPLE_BYTES
        for sample in range(_SAMPLES):  # the last one ends where the file does
            start = _HEAD_BYTES + span * sample // (_SAMPLES - 1)
            digest.update(read(name, start, start + _SAMPLE_BYTES))
    return digest.hexdigest()
