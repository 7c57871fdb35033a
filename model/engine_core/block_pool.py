"""Hands out page numbers of a paged KV cache, and shares pages between equal prefixes.

A page is free, in use by one or more sequences, or idle: unused, but kept because its content has a
block hash. Idle pages are evicted when space is needed, the least recently used first.
"""

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Pages 0 to total - 1. Counts only; the tensors are elsewhere."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._ref_counts = [0] * total
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._hashes: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Pages that `allocate` could give at once."""
        return len(self._free) + len(self._idle)

    @property
    def in_use(self) -> int:
        return self.total - self.available

    def allocate(self, count: int) -> list[int] | None:
        """Returns `count` pages of undefined content with one user, or None if fewer are left."""
        if count > self.available:
            return None
        pages = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self._ref_counts[page] = 1
        return pages

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._pages[self._hashes.pop(page)]
        return page

    def count_cached(self, block_hashes: Sequence[bytes]) -> int:
        """Returns how many of the hashes, from the first on, have a page."""
        missing = (i for i, h in enumerate(block_hashes) if h not in self._pages)
        return next(missing, len(block_hashes))

    def share(self, block_hashes: Sequence[bytes]) -> list[int]:
        """Adds one user to the pages of these hashes, all of them cached, and returns them."""
        pages = [self._pages[block_hash] for block_hash in block_hashes]
        for page in pages:
            if self._ref_counts[page] == 0:
                del self._idle[page]
            self._ref_counts[page] += 1
        return pages

    def set_hash(self, page: int, block_hash: bytes) -> None:
        """Declares the content of a page in use. A hash that another page has stays there."""
        if block_hash not in self._pages and page not in self._hashes:
            self._pages[block_hash] = page
            self._hashes[page] = block_hash

    def release(self, pages: Sequence[int]) -> None:
        """Removes one user from each page.

        The later pages of a sequence become idle first, and so are evicted first: they are useless
        without the earlier ones.
        """
        for page in reversed(pages):
            assert self._ref_counts[page] > 0, f"page {page} is released more often than used"
            self._ref_counts[page] -= 1
            if self._ref_counts[page]:
                continue
            if page in self._hashes:
                self._idle[page] = None
            else:
                self._free.append(page)
