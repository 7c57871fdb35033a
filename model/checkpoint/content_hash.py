"""Computes the hash by which a checkpoint, and each copy of it, is recognized.

Files up to 64 MiB count whole. Larger ones, which are weights, count with their size, their first
MiB and 32 samples of 64 KiB at even distances: training or quantizing changes every tensor, and the
header names each.
"""

import hashlib
from collections.abc import Callable, Mapping

_WHOLE_BYTES = 64 * 1024 * 1024  # files up to here are hashed whole
_SAMPLES, _SAMPLE_BYTES = 32, 64 * 1024  # of larger ones, besides their head
_HEAD_BYTES = 1024 * 1024  # a safetensors header: names, types and shapes


def content_hash(sizes: Mapping[str, int], read: Callable[[str, int, int], bytes]) -> str:
    """The hash of files, 32 hex digits.

    sizes: bytes of each file by its name. read: returns the bytes from `start` to `stop` of a file,
    called as read(name, start, stop).
    """
    whole = hashlib.blake2b(digest_size=16)
    for name, size in sorted(sizes.items()):
        whole.update(f"{name}\0{size}\0".encode())
        if size <= _WHOLE_BYTES:
            whole.update(read(name, 0, size) if size else b"")
            continue
        whole.update(read(name, 0, _HEAD_BYTES))
        span = size - _HEAD_BYTES - _SAMPLE_BYTES
        for sample in range(_SAMPLES):  # the last one ends where the file does
            start = _HEAD_BYTES + span * sample // (_SAMPLES - 1)
            whole.update(read(name, start, start + _SAMPLE_BYTES))
    return whole.hexdigest()
