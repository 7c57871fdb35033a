"""A KV cache for CPUs: the tokens of each sequence are contiguous, and sequences of similar size
lie side by side, so that a decode step reads keys and values in place.

A size class holds sequences of up to one size; the slot of a finished sequence is reused by the
next one, or filled by moving the last. Shared prefixes are cached separately, in small pages, and
copied: a copy costs less than a thousandth of computing them.
"""

from collections.abc import Sequence

import torch

from mediamill.model.engine_core.allocation import Allocation, KVWrite, layer_tensors
from mediamill.model.engine_core.block_pool import BlockPool
from mediamill.model.layers.attention import AttentionName, attention
from mediamill.model.layers.kernels import dense_decode
from mediamill.model.layers.shapes import TextConfig

# "products" reads whole slots if they are at most this many times larger than needed.
WASTE = 4
# Tokens of the smallest size class; each next one is twice as large.
SMALLEST = 256
# Tokens of cached prefixes: a maximum, and a fraction (1 / PREFIX_PART) of the cache.
PREFIX_TOKENS, PREFIX_PART = 16384, 8


class SizeClass:
    """Slots of up to `size` tokens.

    keys, values: per layer [slots, Hkv, size, d]: heads before tokens, because products over one
    head's tokens are then three times as fast in bfloat16.
    allocations: by slot; None for a free slot. The last one is never None.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.allocations: list[Allocation | None] = []
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    @property
    def slots(self) -> int:
        return self.keys[0].shape[0] if self.keys else 0

    @property
    def taken(self) -> int:
        return sum(allocation is not None for allocation in self.allocations)

    def drop_free_tail(self) -> None:
        """Removes the free slots at the end of `allocations`."""
        while self.allocations and self.allocations[-1] is None:
            self.allocations.pop()


class ContiguousCache:
    """keys, values: per layer [pages, page_size, Hkv, d], the cached prefixes."""

    def __init__(
        self,
        config: TextConfig,
        tokens: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        name: AttentionName = "sdpa",
    ) -> None:
        """tokens: capacity, that of the cached prefixes included. page_size: of the prefixes."""
        self._config, self._dtype, self.device, self.name = config, dtype, device, name
        self.page_size = page_size
        pages = min(tokens // PREFIX_PART, PREFIX_TOKENS) // page_size
        self.pool = BlockPool(pages)
        self.keys, self.values = (
            layer_tensors(config, pages, page_size, dtype, device) for _ in range(2)
        )
        self.capacity = tokens - pages * page_size
        self.size_classes: list[SizeClass] = []
        size = SMALLEST
        while size < self.capacity:
            self.size_classes.append(SizeClass(size))
            size *= 2
        self.size_classes.append(SizeClass(self.capacity))

    @property
    def pages(self) -> int:
        return self.pool.total + sum(size_class.slots for size_class in self.size_classes)

    @property
    def pages_in_use(self) -> int:
        return self.pool.in_use + sum(size_class.taken for size_class in self.size_classes)

    @property
    def allocated(self) -> int:
        """Tokens for which the size classes have memory."""
        return sum(size_class.slots * size_class.size for size_class in self.size_classes)

    def allocate(self, tokens: int, block_hashes: Sequence[bytes] = ()) -> Allocation | None:
        """Returns an allocation for `tokens` tokens that begin with the cached pages of these
        hashes, or None while there is no space. tokens 0: for reading those pages only.
        """
        allocation = Allocation(tokens, [], len(block_hashes) * self.page_size)
        if tokens:
            index = next((i for i, c in enumerate(self.size_classes) if c.size >= tokens), None)
            if index is None or not self._take_slot(allocation, index):
                return None
        allocation.pages = self.pool.share(block_hashes)
        return allocation

    def _take_slot(self, allocation: Allocation, index: int) -> bool:
        size_class = self.size_classes[index]
        allocations = size_class.allocations
        slot = next((i for i, a in enumerate(allocations) if a is None), len(allocations))
        if slot == size_class.slots and not self._grow(size_class):
            return False
        allocation.size_class, allocation.slot = index, slot
        allocations[slot : slot + 1] = [allocation]
        return True

    def _grow(self, size_class: SizeClass) -> bool:
        """Makes memory for more slots: twice as many if the capacity allows, else fewer, at least
        one. Returns False if there is no space for one.
        """
        free = self.capacity - self.allocated
        if free < size_class.size:
            for other in self.size_classes:
                if other is not size_class and not other.taken:
                    other.allocations, other.keys, other.values = [], [], []
            free = self.capacity - self.allocated
        added = min(max(1, size_class.slots), free // size_class.size)
        if added < 1:
            return False
        shape = size_class.slots + added, size_class.size
        keys, values = (
            layer_tensors(self._config, *shape, self._dtype, self.device, True) for _ in range(2)
        )
        # There are none before the first growth.
        old_layers = (*size_class.keys, *size_class.values)
        for old, new in zip(old_layers, (*keys, *values), strict=False):
            for slot, allocation in enumerate(size_class.allocations):
                used = 0 if allocation is None else allocation.used
                new[slot, :, :used] = old[slot, :, :used]
        size_class.keys, size_class.values = keys, values
        return True

    def free(self, allocation: Allocation) -> None:
        self.pool.release(allocation.pages)
        allocation.pages = []
        if allocation.size_class >= 0:
            size_class = self.size_classes[allocation.size_class]
            self._clear(size_class, allocation)
            size_class.allocations[allocation.slot] = None
            size_class.drop_free_tail()
            allocation.size_class = allocation.slot = -1

    def _clear(self, size_class: SizeClass, allocation: Allocation) -> None:
        # A NaN left here would reach the next sequence through its masked tokens: 0 * NaN is NaN.
        for tensor in (*size_class.keys, *size_class.values):
            tensor[allocation.slot, :, : allocation.used] = 0

    def publish(self, allocation: Allocation, block_hashes: Sequence[bytes]) -> None:
        """Copies the allocation's first pages, which are filled, to where later sequences with
        these block hashes find them. Releases the pages that the allocation was copied from.
        """
        cached = self.pool.count_cached(block_hashes)
        pages = None
        if allocation.size_class >= 0:
            pages = self.pool.allocate(len(block_hashes) - cached)
        self.pool.release(allocation.pages)
        allocation.pages = []
        if not pages:
            return
        size_class, size = self.size_classes[allocation.size_class], self.page_size
        tokens, index = slice(cached * size, len(block_hashes) * size), torch.tensor(pages)
        for prefix_layers, slot_layers in (
            (self.keys, size_class.keys),
            (self.values, size_class.values),
        ):
            for prefixes, slots in zip(prefix_layers, slot_layers, strict=True):
                new = slots[allocation.slot, :, tokens].transpose(0, 1)
                prefixes[index] = new.reshape(len(pages), size, *new.shape[1:])
        for page, block_hash in zip(pages, block_hashes[cached:], strict=True):
            self.pool.set_hash(page, block_hash)
        self.pool.release(pages)

    def writer(self, writes: Sequence[KVWrite]) -> "ContiguousWriter":
        """Returns what stores the new keys and values of a prefill."""
        return ContiguousWriter(self, writes)

    def batch(
        self, allocations: Sequence[Allocation], seq_lens: Sequence[int]
    ) -> "ContiguousBatch":
        """Returns the state of decode steps. seq_lens: with the new token of each sequence."""
        self._compact()
        return ContiguousBatch(self, allocations, seq_lens)

    def _compact(self) -> None:
        """Moves the last allocations of each size class into its free slots."""
        for size_class in self.size_classes:
            allocations = size_class.allocations
            for slot in range(len(allocations)):
                if slot < len(allocations) and allocations[slot] is None:
                    last = allocations.pop()
                    assert last is not None, "free() leaves no free slot at the end"
                    for tensor in (*size_class.keys, *size_class.values):
                        tensor[slot, :, : last.used] = tensor[last.slot, :, : last.used]
                    self._clear(size_class, last)
                    last.slot = slot
                    allocations[slot] = last
                    size_class.drop_free_tail()


class ContiguousWriter:
    """Stores the new keys and values of a prefill, and copies the cached prefixes before them."""

    def __init__(self, cache: ContiguousCache, writes: Sequence[KVWrite]) -> None:
        self._cache = cache
        self._writes = [
            (*write, torch.tensor(write[0].pages, dtype=torch.long)) for write in writes
        ]

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v: [T, Hkv, d] of the packed tokens of the call."""
        cache = self._cache
        for allocation, position, start, end, pages in self._writes:
            size_class = cache.size_classes[allocation.size_class]
            for stored, prefixes, new in (
                (size_class.keys, cache.keys, k),
                (size_class.values, cache.values, v),
            ):
                slot = stored[layer][allocation.slot]
                slot[:, position : position + end - start] = new[start:end].transpose(0, 1)
                reused = allocation.reused
                if position == reused > 0:
                    slot[:, :reused] = prefixes[layer][pages].flatten(0, 1).transpose(0, 1)


class _SlotRun:
    """Neighbouring slots of one size class, as a decode step reads them.

    index: their rows in the batch, None when they are the whole batch in order.
    last: index of the newest token of each.
    span: tokens of each slot that are read.
    """

    def __init__(
        self,
        cache: ContiguousCache,
        allocations: Sequence[Allocation],
        seq_lens: Sequence[int],
        index: list[int],
    ) -> None:
        first = allocations[index[0]]
        self.size_class = cache.size_classes[first.size_class]
        self.slots = slice(first.slot, first.slot + len(index))
        self.index = None if index == list(range(len(allocations))) else torch.tensor(index)
        self.rows = torch.arange(len(index))
        self.last = torch.tensor([seq_lens[i] - 1 for i in index])
        self.span = max(seq_lens[i] for i in index)
        # Batched products copy keys that are not contiguous: reading masked ones is cheaper.
        self._whole_slots = cache.name == "products" and self.size_class.size <= WASTE * self.span
        if self._whole_slots:
            self.span = self.size_class.size
        self._update_visible()

    def _update_visible(self) -> None:
        self.visible = torch.arange(self.span) <= self.last[:, None]
        self.masks: dict[int | None, torch.Tensor] = {}

    def advance(self) -> None:
        self.last = self.last + 1
        self.span += not self._whole_slots
        self._update_visible()

    def visible_within(self, window: int | None) -> torch.Tensor:
        """Returns which tokens each row attends to: bool [rows, span]."""
        if window is None or window >= self.span:
            return self.visible
        return self.visible & (torch.arange(self.span) > self.last[:, None] - window)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Returns what is added to the scores of every layer: 0 or -inf, [rows, 1, 1, span]."""
        if window not in self.masks:
            hidden = ~self.visible_within(window)
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
            self.masks[window] = mask[:, None, None]
        return self.masks[window]


class ContiguousBatch:
    """Attention of successive decode steps of one batch over a contiguous cache."""

    def __init__(
        self, cache: ContiguousCache, allocations: Sequence[Allocation], seq_lens: Sequence[int]
    ) -> None:
        self.lengths = [1] * len(allocations)
        self._name = cache.name
        places = [(allocation.size_class, allocation.slot) for allocation in allocations]
        runs: list[list[int]] = []
        for i in sorted(range(len(places)), key=places.__getitem__):
            size_class, slot = places[i]
            if runs and places[runs[-1][-1]] == (size_class, slot - 1):
                runs[-1].append(i)
            else:
                runs.append([i])
        self._runs = [_SlotRun(cache, allocations, seq_lens, run) for run in runs]

    def advance(self) -> None:
        """Every sequence has one token more."""
        for run in self._runs:
            run.advance()

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None = None,
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        for run in self._runs:
            i = slice(None) if run.index is None else run.index
            size_class = run.size_class
            keys, values = size_class.keys[layer][run.slots], size_class.values[layer][run.slots]
            keys[run.rows, :, run.last] = k[i]
            values[run.rows, :, run.last] = v[i]
            keys, values = keys[:, :, : run.span], values[:, :, : run.span]
            if self._name == "eager":
                query, mask = q[i][:, :, None], run.visible_within(window)[:, None, None]
                attended = attention(query, keys, values, causal=False, mask=mask, name="eager")
                attended = attended[:, :, 0]
            else:
                mask = run.mask(window, q.dtype)
                attended = dense_decode(q[i], keys, values, mask, self._name)
            if run.index is None:
                return attended
            out[i] = attended
        return out
