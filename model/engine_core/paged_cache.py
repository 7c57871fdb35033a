"""A paged KV cache: the tokens of each sequence lie in pages from anywhere in one block pool, and
sequences share the pages of a common prefix.
"""

from collections.abc import Sequence

import torch

from mediamill.model.engine_core.allocation import Allocation, KVWrite, layer_tensors
from mediamill.model.engine_core.block_pool import BlockPool
from mediamill.model.engine_core.paged_attention import PagedKernel, choose_kernel, paged_decode
from mediamill.model.layers.shapes import TextConfig


class PagedCache:
    """keys, values: per layer [pages + 1, page_size, Hkv, d].

    scratch_page: the last page, which belongs to no sequence; padding of a batch may write there.
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
        """tokens: capacity, rounded down to whole pages. kernel: None chooses the fastest."""
        self.page_size = page_size
        self.pool = BlockPool(max(1, tokens // page_size))
        self.scratch_page = self.pool.total
        self.device = device
        self.kernel = kernel or choose_kernel(device, dtype, config.head_dim, page_size)
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

    def allocate(self, tokens: int, block_hashes: Sequence[bytes] = ()) -> Allocation | None:
        """Returns an allocation for `tokens` tokens that begin with the cached pages of these
        hashes, or None while there is no space. tokens 0: for reading those pages only.
        """
        shared = self.pool.share(block_hashes)
        new = self.pool.allocate(max(0, -(-tokens // self.page_size) - len(shared)))
        if new is None:
            self.pool.release(shared)
            return None
        return Allocation(tokens, shared + new, len(shared) * self.page_size)

    def free(self, allocation: Allocation) -> None:
        self.pool.release(allocation.pages)
        allocation.pages = []

    def publish(self, allocation: Allocation, block_hashes: Sequence[bytes]) -> None:
        """Shares the allocation's first pages, which are filled, under these block hashes."""
        for page, block_hash in zip(allocation.pages, block_hashes, strict=False):
            self.pool.set_hash(page, block_hash)

    def writer(self, writes: Sequence[KVWrite]) -> "PageWriter":
        """Returns what stores the new keys and values of a prefill."""
        return PageWriter(self, writes)

    def batch(self, allocations: Sequence[Allocation], seq_lens: Sequence[int]) -> "PagedBatch":
        """Returns the state of decode steps. seq_lens: with the new token of each sequence."""
        return PagedBatch(self, allocations, seq_lens)


class PageWriter:
    """Stores the new keys and values of a prefill, layer by layer."""

    def __init__(self, cache: PagedCache, writes: Sequence[KVWrite]) -> None:
        size, slots, sources = cache.page_size, [], []
        for allocation, position, start, end in writes:
            index = torch.arange(position, position + end - start)
            slots.append(torch.tensor(allocation.pages)[index // size] * size + index % size)
            sources.append(torch.arange(start, end))
        empty = torch.zeros(0, dtype=torch.long)
        self._slots = torch.cat(slots or [empty]).to(cache.device, non_blocking=True)
        self._sources = torch.cat(sources or [empty]).to(cache.device, non_blocking=True)
        self._cache = cache

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v: [T, Hkv, d] of the packed tokens of the call."""
        for stored, new in ((self._cache.keys, k), (self._cache.values, v)):
            stored[layer].flatten(0, 1).index_copy_(0, self._slots, new[self._sources])


class PagedBatch:
    """The inputs of successive decode steps of one batch, on the device: `block_table`, `seq_lens`
    and `slots`, see `DecodeInputs`.
    """

    def __init__(
        self, cache: PagedCache, allocations: Sequence[Allocation], seq_lens: Sequence[int]
    ) -> None:
        self.cache = cache
        width = max(len(allocation.pages) for allocation in allocations)
        table = [a.pages + [0] * (width - len(a.pages)) for a in allocations]
        self.block_table = torch.tensor(table, dtype=torch.int32).to(cache.device)
        self.seq_lens = torch.tensor(seq_lens, dtype=torch.int32).to(cache.device)
        self._update_slots()

    def _update_slots(self) -> None:
        last, size = self.seq_lens.long() - 1, self.cache.page_size
        page = self.block_table.gather(1, (last // size)[:, None])[:, 0].long()
        self.slots = page * size + last % size

    def advance(self) -> None:
        """Every sequence has one token more."""
        self.seq_lens = self.seq_lens + 1
        self._update_slots()


class PagedDecode:
    """Attention of one decode step over pages: stores the new token of each sequence first."""

    def __init__(
        self,
        cache: PagedCache,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        self.lengths = [1] * len(slots)
        self._cache = cache
        self._block_table, self._seq_lens, self._slots = block_table, seq_lens, slots

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
        return paged_decode(q, keys, values, self._block_table, self._seq_lens, window, kernel)
