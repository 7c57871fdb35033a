"""Computes the block hashes of a prompt: pages with equal hashes have equal keys and values.

A hash covers all tokens up to the end of its page, and the content of the media among them.
"""

import hashlib
import itertools
import weakref
from array import array
from collections.abc import Sequence

import torch

# Among 2^60 different prefixes two share a hash of 16 bytes with probability 2^-8 or less.
_HASH_BYTES = 16


class TensorIds:
    """Gives each tensor of patches an id that is unique for as long as the engine lives.

    The content of a tensor must not change. An id is never reused, even when a new tensor takes the
    memory of an old one.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._entries: dict[int, tuple[weakref.ref[torch.Tensor], bytes]] = {}

    def of(self, patches: torch.Tensor) -> bytes:
        """Returns the id of this tensor."""
        key = id(patches)
        entry = self._entries.get(key)
        if entry is not None and entry[0]() is patches:
            return entry[1]
        tensor_id = b"identity %d" % next(self._numbers)

        def remove(reference: weakref.ref[torch.Tensor]) -> None:
            entry = self._entries.get(key)
            if entry is not None and entry[0] is reference:
                del self._entries[key]

        self._entries[key] = (weakref.ref(patches, remove), tensor_id)
        return tensor_id


def named_media_id(name: str) -> bytes:
    """Returns the id of a medium that the caller has named; differs from all ids of `TensorIds`."""
    return b"name " + name.encode(errors="surrogatepass")


def block_hashes(
    input_ids: Sequence[int], media: Sequence[tuple[int, bytes]], page_size: int
) -> list[bytes]:
    """Returns one hash for each full page of the prompt, chained to the one before it.

    media: (index of its first pad token, id of its content), in prompt order.
    """
    hashes: list[bytes] = []
    previous = b""
    remaining = list(reversed(media))
    for end in range(page_size, len(input_ids) + 1, page_size):
        digest = hashlib.blake2b(previous, digest_size=_HASH_BYTES)
        digest.update(array("q", input_ids[end - page_size : end]).tobytes())
        while remaining and remaining[-1][0] < end:
            media_id = remaining.pop()[1]
            digest.update(len(media_id).to_bytes(8, "little") + media_id)
        previous = digest.digest()
        hashes.append(previous)
    return hashes
