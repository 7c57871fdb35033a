"""A key-value cache for CPUs: every row's tokens lie in one piece, and rows of like size side by
side, so that a decode step reads keys and values where they are.

A shelf holds rows of one size; a hole that a finished row leaves is filled by the next row, or by
moving the last. Beginnings that rows share are kept apart, in small pages, and copied: a copy costs
less than a thousandth of computing them. It does not know requests or weights.
"""

from collections.abc import Sequence

import torch

from mediamill.model.engine_core.allocation import Allocation, layer_tensors
from mediamill.model.engine_core.block_pool import BlockPool
from mediamill.model.layers.attention import AttentionName, attention
from mediamill.model.layers.kernels import dense_decode
from mediamill.model.layers.shapes import TextConfig

# "products" reads whole rows of a shelf where they are at most so many times what is needed.
WASTE = 4
# Tokens of the smallest shelf; each next one is twice as deep.
SMALLEST = 256
# Tokens of shared beginnings that are kept, at most, and as a part of the whole cache.
PREFIX_TOKENS, PREFIX_PART = 16384, 8


class SizeClass:
    """Rows of up to `size` tokens. keys, values: per layer [slots, Hkv, size, d]: heads before
    tokens, because products over one head's tokens are then three times as fast in bfloat16.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rooms: list[Allocation | None] = []
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    @property
    def slots(self) -> int:
        return self.keys[0].shape[0] if self.keys else 0

    @property
    def taken(self) -> int:
        return sum(room is not None for room in self.rooms)


class ContiguousCache:
    """keys, values: per layer [pages, page_size, Hkv, d], the kept beginnings."""

    def __init__(
        self,
        config: TextConfig,
        tokens: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        name: AttentionName = "sdpa",
    ) -> None:
        """tokens: room in all. page_size: of the kept beginnings."""
        self._config, self._dtype, self.device, self.name = config, dtype, device, name
        self.page_size = page_size
        kept = min(tokens // PREFIX_PART, PREFIX_TOKENS) // page_size
        self.pool = BlockPool(kept)
        self.keys, self.values = (
            layer_tensors(config, kept, page_size, dtype, device) for _ in range(2)
        )
        self.capacity = tokens - kept * page_size
        self.shelves: list[SizeClass] = []
        size = SMALLEST
        while size < self.capacity:
            self.shelves.append(SizeClass(size))
            size *= 2
        self.shelves.append(SizeClass(self.capacity))

    @property
    def pages(self) -> int:
        return self.pool.total + sum(shelf.slots for shelf in self.shelves)

    @property
    def pages_in_use(self) -> int:
        return self.pool.in_use + sum(shelf.taken for shelf in self.shelves)

    @property
    def allocated(self) -> int:
        """Tokens for which the shelves have memory."""
        return sum(shelf.slots * shelf.size for shelf in self.shelves)

    def open(self, tokens: int, names: Sequence[bytes] = ()) -> Allocation | None:
        """Returns an allocation for `tokens` tokens that begin with the cached pages `names`, or
        None while there is no space. tokens 0: for reading those pages only.
        """
        room = Allocation(tokens, [], len(names) * self.page_size)
        if tokens:
            number = next((i for i, s in enumerate(self.shelves) if s.size >= tokens), None)
            if number is None or not self._place(room, number):
                return None
        room.pages = self.pool.share(names)
        return room

    def _place(self, room: Allocation, number: int) -> bool:
        shelf = self.shelves[number]
        slot = next((i for i, one in enumerate(shelf.rooms) if one is None), len(shelf.rooms))
        if slot == shelf.slots and not self._grow(shelf):
            return False
        room.shelf, room.slot = number, slot
        shelf.rooms[slot : slot + 1] = [room]
        return True

    def _grow(self, shelf: SizeClass) -> bool:
        """Make memory for more rows: twice as many where there is so much room, or one."""
        free = self.capacity - self.allocated
        if free < shelf.size:
            for other in self.shelves:
                if other is not shelf and not other.taken:
                    other.rooms, other.keys, other.values = [], [], []
            free = self.capacity - self.allocated
        more = min(max(1, shelf.slots), free // shelf.size)
        if more < 1:
            return False
        grown = []
        for old in (shelf.keys, shelf.values):
            slots = shelf.slots + more
            new = layer_tensors(self._config, slots, shelf.size, self._dtype, self.device, True)
            for before, after in zip(old, new, strict=False):
                for slot, room in enumerate(shelf.rooms):
                    used = 0 if room is None else room.used
                    after[slot, :, :used] = before[slot, :, :used]
            grown.append(new)
        shelf.keys, shelf.values = grown
        return True

    def close(self, room: Allocation) -> None:
        """Give the room back."""
        self.pool.release(room.pages)
        room.pages = []
        if room.shelf >= 0:
            shelf = self.shelves[room.shelf]
            self._clear(shelf, room)
            shelf.rooms[room.slot] = None
            while shelf.rooms and shelf.rooms[-1] is None:
                shelf.rooms.pop()
            room.shelf = room.slot = -1

    def _clear(self, shelf: SizeClass, room: Allocation) -> None:
        # A NaN left behind would reach the next row through its hidden tokens: 0 * NaN is NaN.
        for tensor in (*shelf.keys, *shelf.values):
            tensor[room.slot, :, : room.used] = 0

    def publish(self, room: Allocation, names: Sequence[bytes]) -> None:
        """Let later rows share the room's first pages: names of pages that are filled now."""
        known = self.pool.known(names)
        pages = self.pool.take(len(names) - known) if room.shelf >= 0 else None
        # The row has a copy of what it shared.
        self.pool.release(room.pages)
        room.pages = []
        if not pages:
            return
        shelf, size = self.shelves[room.shelf], self.page_size
        tokens, index = slice(known * size, len(names) * size), torch.tensor(pages)
        for kept, rows in ((self.keys, shelf.keys), (self.values, shelf.values)):
            for page, row in zip(kept, rows, strict=True):
                new = row[room.slot, :, tokens].transpose(0, 1)
                page[index] = new.reshape(len(pages), size, *new.shape[1:])
        for number, name in zip(pages, names[known:], strict=True):
            self.pool.name(number, name)
        self.pool.release(pages)

    def writer(self, rooms: Sequence[tuple[Allocation, int, int, int]]) -> "ContiguousWriter":
        """What a prefill stores with. rooms: each room, the place in it of the first new token, and
        which of the call's packed tokens are the new ones: start, end.
        """
        return ContiguousWriter(self, rooms)

    def batch(self, rooms: Sequence[Allocation], filled: Sequence[int]) -> "ContiguousBatch":
        """The state of a decode step. filled: tokens of each row, the new one included."""
        self._close_holes()
        return ContiguousBatch(self, rooms, filled)

    def _close_holes(self) -> None:
        for shelf in self.shelves:
            for slot in range(len(shelf.rooms)):
                if slot < len(shelf.rooms) and shelf.rooms[slot] is None:
                    room = shelf.rooms.pop()
                    assert room is not None, "close() leaves no hole at the end"
                    for tensor in (*shelf.keys, *shelf.values):
                        tensor[slot, :, : room.used] = tensor[room.slot, :, : room.used]
                    self._clear(shelf, room)
                    room.slot = slot
                    shelf.rooms[slot] = room
                    while shelf.rooms[-1] is None:
                        shelf.rooms.pop()


class ContiguousWriter:
    """Stores keys and values of a prefill's rows, the shared beginnings included."""

    def __init__(
        self, cache: ContiguousCache, rooms: Sequence[tuple[Allocation, int, int, int]]
    ) -> None:
        self._cache = cache
        self._rooms = [(*one, torch.tensor(one[0].pages, dtype=torch.long)) for one in rooms]

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v: [T, Hkv, d] of the call's packed tokens."""
        cache = self._cache
        for room, place, start, end, pages in self._rooms:
            shelf = cache.shelves[room.shelf]
            for stored, kept, new in (
                (shelf.keys, cache.keys, k),
                (shelf.values, cache.values, v),
            ):
                row = stored[layer][room.slot]
                row[:, place : place + end - start] = new[start:end].transpose(0, 1)
                if place == room.reused > 0:
                    row[:, : room.reused] = kept[layer][pages].flatten(0, 1).transpose(0, 1)


class _Run:
    """Rows that stand side by side on one shelf, as one decode step sees them.

    index: their numbers in the batch, None when they are the batch in order. places: where the new
    token of each goes.
    """

    def __init__(
        self,
        shelf: SizeClass,
        first: int,
        index: list[int],
        filled: Sequence[int],
        rows: int,
        whole: bool,
    ) -> None:
        self.shelf = shelf
        self.slots = slice(first, first + len(index))
        self.index = None if index == list(range(rows)) else torch.tensor(index)
        self.rows = torch.arange(len(index))
        self.places = torch.tensor([filled[i] - 1 for i in index])
        self.span = max(filled[i] for i in index)
        # Batched products copy keys that do not lie in one piece: reading hidden ones is cheaper.
        self._whole = whole and shelf.size <= WASTE * self.span
        if self._whole:
            self.span = shelf.size
        self._look()

    def _look(self) -> None:
        self.visible = torch.arange(self.span) <= self.places[:, None]
        self.masks: dict[int | None, torch.Tensor] = {}

    def advance(self) -> None:
        self.places = self.places + 1
        self.span += not self._whole
        self._look()

    def visible_within(self, window: int | None) -> torch.Tensor:
        """What each row sees: bool [rows, span]."""
        if window is None or window >= self.span:
            return self.visible
        return self.visible & (torch.arange(self.span) > self.places[:, None] - window)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores: 0 or -inf, [rows, 1, 1, span]; made once for all layers."""
        if window not in self.masks:
            hidden = ~self.visible_within(window)
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
            self.masks[window] = mask[:, None, None]
        return self.masks[window]


class ContiguousBatch:
    """Attend for one decode step after the other over shelves."""

    def __init__(
        self, cache: ContiguousCache, rooms: Sequence[Allocation], filled: Sequence[int]
    ) -> None:
        self.lengths = [1] * len(rooms)
        self._name = cache.name
        order = sorted(range(len(rooms)), key=lambda i: (rooms[i].shelf, rooms[i].slot))
        runs: list[list[int]] = []
        for i in order:
            last = rooms[runs[-1][-1]] if runs else None
            if last and (last.shelf, last.slot + 1) == (rooms[i].shelf, rooms[i].slot):
                runs[-1].append(i)
            else:
                runs.append([i])
        self._runs = [
            _Run(
                cache.shelves[rooms[i[0]].shelf],
                rooms[i[0]].slot,
                i,
                filled,
                len(rooms),
                cache.name == "products",
            )
            for i in runs
        ]

    def advance(self) -> None:
        """Every row has one token more."""
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
        if len(self._runs) == 1 and self._runs[0].index is None:
            return self._attend(self._runs[0], layer, q, k, v, window)
        out = torch.empty_like(q)
        for run in self._runs:
            i = run.index
            assert i is not None, "one run of all rows is the case above"
            out[i] = self._attend(run, layer, q[i], k[i], v[i], window)
        return out

    def _attend(
        self,
        run: _Run,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None,
    ) -> torch.Tensor:
        keys, values = run.shelf.keys[layer][run.slots], run.shelf.values[layer][run.slots]
        keys[run.rows, :, run.places] = k
        values[run.rows, :, run.places] = v
        keys, values = keys[:, :, : run.span], values[:, :, : run.span]
        if self._name == "eager":
            mask = run.visible_within(window)[:, None, None]
            return attention(q[:, :, None], keys, values, causal=False, mask=mask, name="eager")[
                :, :, 0
            ]
        return dense_decode(q, keys, values, run.mask(window, q.dtype), self._name)
