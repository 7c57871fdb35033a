"""Turns the beginning of a prompt into names of its pages: equal names, equal keys and values.

A name covers all tokens up to the end of its page and the content of the media among them. It does
not know where pages lie.
"""

import hashlib
import itertools
import weakref
from array import array
from collections.abc import Sequence

import torch

# Bytes of a name: two different beginnings among 2^60 share one with probability 2^-8 or less.
_NAME_BYTES = 16


class MediaNames:
    """Names for patches by identity: one tensor, one name, as long as it lives.

    Its content must not change meanwhile. A name is never given twice, even when a new tensor
    takes the memory of an old one.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], bytes]] = {}

    def of(self, patches: torch.Tensor) -> bytes:
        """The name of this tensor."""
        key = id(patches)
        known = self._known.get(key)
        if known is not None and known[0]() is patches:
            return known[1]
        name = b"identity %d" % next(self._numbers)

        def forget(gone: weakref.ref[torch.Tensor]) -> None:
            entry = self._known.get(key)
            if entry is not None and entry[0] is gone:
                del self._known[key]

        self._known[key] = (weakref.ref(patches, forget), name)
        return name

    def __len__(self) -> int:
        return len(self._known)


def content_name(name: str) -> bytes:
    """A caller's name for a content, kept apart from those that go by identity."""
    return b"name " + name.encode(errors="surrogatepass")


def block_hashes(
    input_ids: Sequence[int], media: Sequence[tuple[int, bytes]], page_size: int
) -> list[bytes]:
    """One name for each full page of the prompt, each made of the one before it.

    media: (index of its first pad token, name of its content), in prompt order.
    """
    names: list[bytes] = []
    previous = b""
    remaining = list(reversed(media))
    for end in range(page_size, len(input_ids) + 1, page_size):
        digest = hashlib.blake2b(previous, digest_size=_NAME_BYTES)
        digest.update(array("q", input_ids[end - page_size : end]).tobytes())
        while remaining and remaining[-1][0] < end:
            name = remaining.pop()[1]
            digest.update(len(name).to_bytes(8, "little") + name)
        previous = digest.digest()
        names.append(previous)
    return names
