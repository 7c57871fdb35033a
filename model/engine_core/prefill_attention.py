"""Attention of a prefill: packed pieces of prompts, some of which go on after known tokens.

Turns a list of pieces into what a decoder layer calls. Pieces that stand alone go through packed
attention together; each of the others sees its own context and nothing else, and those with the
same context go through attention together. It does not know what the pieces are for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch

from mediamill.model.layers.attention import AttentionName, attention, packed_attention
from mediamill.model.layers.flash import Boundaries
from mediamill.model.layers.kernels import window_mask


@dataclass(frozen=True)
class Piece:
    """A run of new tokens of one sequence.

    pages: of the cache, holding all that comes before, full. after: number of the piece of the same
    call whose context and tokens come before, instead.
    """

    tokens: int
    pages: tuple[int, ...] = ()
    after: int | None = None

    @property
    def alone(self) -> bool:
        return not self.pages and self.after is None


class PageStore(Protocol):
    """Where pages are read: per layer [pages, page_size, Hkv, d]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]


class Writer(Protocol):
    """What stores a call's new keys and values."""

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v: [T, Hkv, d] of the call's packed tokens."""


class Prefill:
    """Attend for a prefill. The pieces that stand alone come first, the others after what they
    follow.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        store: PageStore,
        writer: Writer,
        name: AttentionName,
        device: torch.device,
    ) -> None:
        self.lengths = [piece.tokens for piece in pieces]
        self._pieces, self._store, self._writer, self._name = pieces, store, writer, name
        self._starts = [0, *accumulate(self.lengths)]
        self._page_size = store.keys[0].shape[1]
        self._count = sum(piece.alone for piece in pieces)
        assert all(piece.alone for piece in pieces[: self._count]), "pieces alone come first"
        self._packed = self._starts[self._count]
        self._pages = {
            piece.pages: torch.tensor(piece.pages, device=device) for piece in pieces if piece.pages
        }
        self._groups = self._grouped()
        self._masks: dict[tuple[tuple[int, ...], int, int | None], torch.Tensor] = {}
        self._boundaries: Boundaries | None = None
        if name == "flash" and self._count:
            self._boundaries = Boundaries(self.lengths[: self._count], device)

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None = None,
    ) -> torch.Tensor:
        self._writer.write(layer, k, v)
        out = []
        if self._count:
            own = slice(0, self._packed)
            out.append(
                packed_attention(
                    q[own],
                    k[own],
                    v[own],
                    self.lengths[: self._count],
                    causal=True,
                    name=self._name,
                    window=window,
                    boundaries=self._boundaries,
                )
            )
        for group in self._groups:
            rows = slice(self._starts[group.start], self._starts[group.stop])
            keys = torch.cat([*self._before(group.start, self._store.keys[layer], k), k[rows]])
            values = torch.cat([*self._before(group.start, self._store.values[layer], v), v[rows]])
            lengths = tuple(self.lengths[group.start : group.stop])
            found = attention(
                q[rows].transpose(0, 1)[None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                causal=False,
                mask=self._mask(lengths, len(keys), window, q.device),
                name=self._name,
            )
            out.append(found[0].transpose(0, 1))
        return out[0] if len(out) == 1 else torch.cat(out)

    def _grouped(self) -> list[range]:
        """Pieces that do not stand alone, in runs that follow the same one.

        A run has no more tokens than come before it: so many products are hidden again at most.
        """
        groups: list[range] = []
        for number in range(self._count, len(self._pieces)):
            after = self._pieces[number].after
            last = groups[-1] if groups else None
            if last and after is not None and after == self._pieces[last.start].after:
                tokens = self._starts[number + 1] - self._starts[last.start]
                if tokens <= self._tokens_before(number):
                    groups[-1] = range(last.start, number + 1)
                    continue
            groups.append(range(number, number + 1))
        return groups

    def _tokens_before(self, number: int) -> int:
        piece = self._pieces[number]
        if piece.after is None:
            return len(piece.pages) * self._page_size
        return self._tokens_before(piece.after) + self.lengths[piece.after]

    def _before(self, number: int, pages: torch.Tensor, new: torch.Tensor) -> list[torch.Tensor]:
        """Keys or values of all that a piece sees before its own: [tokens, Hkv, d] each."""
        piece = self._pieces[number]
        if piece.after is not None:
            own = new[self._starts[piece.after] : self._starts[piece.after + 1]]
            return [*self._before(piece.after, pages, new), own]
        return [pages[self._pages[piece.pages]].flatten(0, 1)] if piece.pages else []

    def _mask(
        self, lengths: tuple[int, ...], keys: int, window: int | None, device: torch.device
    ) -> torch.Tensor:
        """What pieces of `lengths` see: the context that they have in common, and themselves."""
        key = (lengths, keys, window)
        if key not in self._masks:
            before = keys - sum(lengths)
            mask = torch.zeros(keys - before, keys, dtype=torch.bool, device=device)
            start = 0
            for length in lengths:
                own = window_mask(length, before + length, window, device)
                rows = mask[start : start + length]
                rows[:, :before] = own[:, :before]
                rows[:, before + start : before + start + length] = own[:, before:]
                start += length
            self._masks[key] = mask[None, None]
        return self._masks[key]
