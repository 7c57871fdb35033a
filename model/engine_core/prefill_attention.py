"""Attention of a prefill over packed chunks, some of which continue cached pages or other chunks.

Chunks without context go through packed attention together. Each of the others attends to its own
context and itself; neighbours with the same context go through attention together.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch

from mediamill.model.engine_core.kv_cache import Cache, CacheWriter
from mediamill.model.engine_core.prefill_chunks import PrefillChunk
from mediamill.model.layers.attention import AttentionName, attention, packed_attention
from mediamill.model.layers.flash import Boundaries
from mediamill.model.layers.kernels import window_mask


class PrefillAttention:
    """Attention of one prefill over chunks in the order of `build_chunks`."""

    def __init__(
        self,
        chunks: Sequence[PrefillChunk],
        cache: Cache,
        writer: CacheWriter,
        name: AttentionName,
        device: torch.device,
    ) -> None:
        self.lengths = [len(chunk.ids) for chunk in chunks]
        self._chunks, self._cache, self._writer, self._name = chunks, cache, writer, name
        self._starts = [0, *accumulate(self.lengths)]
        self._count = sum(not chunk.has_context for chunk in chunks)
        assert not any(c.has_context for c in chunks[: self._count]), "those without come first"
        self._pages = {
            chunk.pages: torch.tensor(chunk.pages, device=device) for chunk in chunks if chunk.pages
        }
        self._groups = self._group_by_context()
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
            end = self._starts[self._count]
            out.append(
                packed_attention(
                    q[:end],
                    k[:end],
                    v[:end],
                    self.lengths[: self._count],
                    causal=True,
                    name=self._name,
                    window=window,
                    boundaries=self._boundaries,
                )
            )
        for group in self._groups:
            rows = slice(self._starts[group.start], self._starts[group.stop])
            keys = torch.cat([*self._context(group.start, self._cache.keys[layer], k), k[rows]])
            values = torch.cat([*self._context(group.start, self._cache.values[layer], v), v[rows]])
            mask = self._mask(
                tuple(self.lengths[group.start : group.stop]), len(keys), window, q.device
            )
            query, keys, values = (x.transpose(0, 1)[None] for x in (q[rows], keys, values))
            attended = attention(query, keys, values, causal=False, mask=mask, name=self._name)
            out.append(attended[0].transpose(0, 1))
        return out[0] if len(out) == 1 else torch.cat(out)

    def _group_by_context(self) -> list[range]:
        """Returns the chunks with context in runs that continue the same chunk.

        A run has at most as many tokens as its context, which bounds the masked-out work.
        """
        groups: list[range] = []
        for index in range(self._count, len(self._chunks)):
            after = self._chunks[index].after
            last = groups[-1] if groups else None
            if last and after is not None and after == self._chunks[last.start].after:
                tokens = self._starts[index + 1] - self._starts[last.start]
                if tokens <= self._context_tokens(index):
                    groups[-1] = range(last.start, index + 1)
                    continue
            groups.append(range(index, index + 1))
        return groups

    def _context_tokens(self, index: int) -> int:
        chunk = self._chunks[index]
        if chunk.after is None:
            return len(chunk.pages) * self._cache.page_size
        return self._context_tokens(chunk.after) + self.lengths[chunk.after]

    def _context(self, index: int, pages: torch.Tensor, new: torch.Tensor) -> list[torch.Tensor]:
        """Returns the keys or values of a chunk's context, in parts of [tokens, Hkv, d]."""
        chunk = self._chunks[index]
        if chunk.after is not None:
            before = new[self._starts[chunk.after] : self._starts[chunk.after + 1]]
            return [*self._context(chunk.after, pages, new), before]
        return [pages[self._pages[chunk.pages]].flatten(0, 1)] if chunk.pages else []

    def _mask(
        self, lengths: tuple[int, ...], keys: int, window: int | None, device: torch.device
    ) -> torch.Tensor:
        """Returns what chunks of `lengths` attend to: their common context, and each itself."""
        key = (lengths, keys, window)
        if key not in self._masks:
            context = keys - sum(lengths)
            mask = torch.zeros(keys - context, keys, dtype=torch.bool, device=device)
            start = 0
            for length in lengths:
                alone = window_mask(length, context + length, window, device)
                rows = mask[start : start + length]
                rows[:, :context] = alone[:, :context]
                rows[:, context + start : context + start + length] = alone[:, context:]
                start += length
            self._masks[key] = mask[None, None]
        return self._masks[key]
