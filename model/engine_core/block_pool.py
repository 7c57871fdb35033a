"""Turns requests for room into page numbers, shared by rows whose content begins alike.

Counts on the host alone; what the pages hold, and where, is not known. A page is free, or in use by
one or more rows, or idle: used by nobody, kept because its content has a name, and given away when
room is needed, the one longest unused first.
"""

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Pages 0 to total - 1."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._users = [0] * total
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._names: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Pages that `take` could give at once."""
        return len(self._free) + len(self._idle)

    @property
    def in_use(self) -> int:
        return self.total - self.available

    @property
    def idle(self) -> int:
        """Pages that nobody uses and that keep their content."""
        return len(self._idle)

    def take(self, count: int) -> list[int] | None:
        """`count` pages of unknown content for one user, or None when there are not so many."""
        if count > self.available:
            return None
        pages = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self._users[page] = 1
        return pages

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._pages[self._names.pop(page)]
        return page

    def known(self, names: Sequence[bytes]) -> int:
        """How many of `names`, from the first on, have a page."""
        return next((i for i, name in enumerate(names) if name not in self._pages), len(names))

    def share(self, names: Sequence[bytes]) -> list[int]:
        """The pages of these names, all of them known, with one user more."""
        pages = [self._pages[name] for name in names]
        for page in pages:
            if self._users[page] == 0:
                del self._idle[page]
            self._users[page] += 1
        return pages

    def name(self, page: int, name: bytes) -> None:
        """Say what a page in use holds. A name that another page has stays with that page."""
        if name not in self._pages and page not in self._names:
            self._pages[name] = page
            self._names[page] = name

    def release(self, pages: Sequence[int]) -> None:
        """One user less for each page. Later pages of a row become idle first: they are worth
        nothing without the earlier ones.
        """
        for page in reversed(pages):
            assert self._users[page] > 0, f"page {page} is released more often than used"
            self._users[page] -= 1
            if self._users[page]:
                continue
            if page in self._names:
                self._idle[page] = None
            else:
                self._free.append(page)
