"""A key-value cache in pages: each row's tokens lie in pages from anywhere in one pool.

Turns reservations into pages, shares those of a common beginning, and gives prefill and decode what
they write to and read. It does not know requests or weights.
"""

from collections.abc import Sequence

import torch

from mediamill.model.engine_core.allocation import Allocation, layer_tensors
from mediamill.model.engine_core.block_pool import BlockPool
from mediamill.model.engine_core.paged_attention import PagedKernel, choose_kernel, paged_decode
from mediamill.model.layers.shapes import TextConfig


class PagedCache:
    """keys, values: per layer [pages + 1, page_size, Hkv, d]; the last page, `scratch_page`, is
    nobody's: what fills up a batch may write there.
    """

    def __init__(
        self,
        config: TextConfig,
        tokens: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kernel: PagedKernel | None = None,
    ) -> None:
        """tokens: room in all, cut down to whole pages. kernel: None chooses the fastest."""
        self.page_size = page_size
        self.pool = BlockPool(max(1, tokens // page_size))
        self.scratch_page = self.pool.total
        self.device = device
        self.kernel: PagedKernel = kernel or choose_kernel(
            device, dtype, config.head_dim, page_size
        )
        self.keys, self.values = (
            layer_tensors(config, self.pool.total + 1, page_size, dtype, device) for _ in range(2)
        )

    @property
    def capacity(self) -> int:
        """Tokens that the whole cache holds."""
        return self.pool.total * self.page_size

    @property
    def pages(self) -> int:
        return self.pool.total

    @property
    def pages_in_use(self) -> int:
        return self.pool.in_use

    def open(self, tokens: int, names: Sequence[bytes] = ()) -> Allocation | None:
        """Returns an allocation for `tokens` tokens that begin with the cached pages `names`, or
        None while there is no space. tokens 0: for reading those pages only.
        """
        shared = self.pool.share(names)
        fresh = self.pool.take(max(0, -(-tokens // self.page_size) - len(shared)))
        if fresh is None:
            self.pool.release(shared)
            return None
        return Allocation(tokens, shared + fresh, len(shared) * self.page_size)

    def close(self, room: Allocation) -> None:
        """Give the room back."""
        self.pool.release(room.pages)
        room.pages = []

    def publish(self, room: Allocation, names: Sequence[bytes]) -> None:
        """Let later rows share the room's first pages: names of pages that are filled now."""
        for page, name in zip(room.pages, names, strict=False):
            self.pool.name(page, name)

    def writer(self, rooms: Sequence[tuple[Allocation, int, int, int]]) -> "PageWriter":
        """What a prefill stores with. rooms: each room, the place in it of the first new token, and
        which of the call's packed tokens are the new ones: start, end.
        """
        return PageWriter(self, rooms)

    def batch(self, rooms: Sequence[Allocation], filled: Sequence[int]) -> "PagedBatch":
        """The state of a decode step. filled: tokens of each row, the new one included."""
        return PagedBatch(self, rooms, filled)


class PageWriter:
    """Stores the new keys and values of a prefill's rows, layer by layer."""

    def __init__(
        self, cache: PagedCache, rooms: Sequence[tuple[Allocation, int, int, int]]
    ) -> None:
        size, places, sources = cache.page_size, [], []
        for room, place, start, end in rooms:
            at = torch.arange(place, place + end - start)
            places.append(torch.tensor(room.pages)[at // size] * size + at % size)
            sources.append(torch.arange(start, end))
        nothing = torch.zeros(0, dtype=torch.long)
        self._places = torch.cat(places or [nothing]).to(cache.device, non_blocking=True)
        self._sources = torch.cat(sources or [nothing]).to(cache.device, non_blocking=True)
        self._cache = cache

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v: [T, Hkv, d] of the call's packed tokens."""
        for stored, new in ((self._cache.keys, k), (self._cache.values, v)):
            stored[layer].flatten(0, 1).index_copy_(0, self._places, new[self._sources])


class PagedBatch:
    """Rows of one decode step after the other. Tensors on the device: block_table int32 [B, most
    pages], filled int32 [B], slots int64 [B] (page * page_size + offset of the new token).
    """

    def __init__(
        self, cache: PagedCache, rooms: Sequence[Allocation], filled: Sequence[int]
    ) -> None:
        self.cache = cache
        self.longest = max(filled)
        width = max(len(room.pages) for room in rooms)
        table = [room.pages + [0] * (width - len(room.pages)) for room in rooms]
        self.block_table = torch.tensor(table, dtype=torch.int32).to(cache.device)
        self.filled = torch.tensor(filled, dtype=torch.int32).to(cache.device)
        self._place()

    def _place(self) -> None:
        last, size = self.filled.long() - 1, self.cache.page_size
        page = self.block_table.gather(1, (last // size)[:, None])[:, 0].long()
        self.slots = page * size + last % size

    def advance(self) -> None:
        """Every row has one token more."""
        self.filled = self.filled + 1
        self.longest += 1
        self._place()


class PagedDecode:
    """Attend for one decode step over pages: stores the new token of each row, then attends."""

    def __init__(
        self,
        cache: PagedCache,
        block_table: torch.Tensor,
        filled: torch.Tensor,
        slots: torch.Tensor,
        longest: int | None = None,
    ) -> None:
        self.lengths = [1] * len(slots)
        self._cache = cache
        self._table, self._filled, self._slots = block_table, filled, slots
        self._longest = longest

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None = None,
    ) -> torch.Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.flatten(0, 1).index_copy_(0, self._slots, k)
        values.flatten(0, 1).index_copy_(0, self._slots, v)
        kernel = self._cache.kernel
        return paged_decode(
            q, keys, values, self._table, self._filled, window, kernel, self._longest
        )
