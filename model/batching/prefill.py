"""Attention of a prefill: packed pieces of prompts, some of which go on after known tokens.

Turns a list of pieces into what a decoder layer calls. Pieces that stand alone go through packed
attention together; each of the others sees its own context and nothing else. It does not know what
the pieces are for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch

from model.network.attention import AttentionName, attention, packed_attention
from model.network.flash import Boundaries
from model.network.kernels import window_mask


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
        self._count = sum(piece.alone for piece in pieces)
        assert all(piece.alone for piece in pieces[: self._count]), "pieces alone come first"
        self._packed = self._starts[self._count]
        self._pages = {
            piece.pages: torch.tensor(piece.pages, device=device) for piece in pieces if piece.pages
        }
        self._masks: dict[tuple[int, int, int | None], torch.Tensor] = {}
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
        for number in range(self._count, len(self._pieces)):
            rows = slice(self._starts[number], self._starts[number + 1])
            keys = torch.cat(self._context(number, self._store.keys[layer], k))
            values = torch.cat(self._context(number, self._store.values[layer], v))
            found = attention(
                q[rows].transpose(0, 1)[None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                causal=False,
                mask=self._mask(rows.stop - rows.start, len(keys), window, q.device),
                name=self._name,
            )
            out.append(found[0].transpose(0, 1))
        return out[0] if len(out) == 1 else torch.cat(out)

    def _context(self, number: int, pages: torch.Tensor, new: torch.Tensor) -> list[torch.Tensor]:
        """Keys or values of all that a piece sees, its own included: [tokens, Hkv, d] each."""
        piece = self._pieces[number]
        own = new[self._starts[number] : self._starts[number + 1]]
        if piece.after is not None:
            return [*self._context(piece.after, pages, new), own]
        if piece.pages:
            return [pages[self._pages[piece.pages]].flatten(0, 1), own]
        return [own]

    def _mask(
        self, queries: int, keys: int, window: int | None, device: torch.device
    ) -> torch.Tensor:
        key = (queries, keys, window)
        if key not in self._masks:
            self._masks[key] = window_mask(queries, keys, window, device)[None, None]
        return self._masks[key]
