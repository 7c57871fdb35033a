"""The two steps of the engine: the prefill of new rows, and one more token for running ones.

Turns rows with their room in the cache into hidden states and logits. Everything is packed; which
rows run, and what becomes of their tokens, is not known here.
"""

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import torch

from mediamill.model.engine_core.contiguous_cache import ContiguousBatch, ContiguousCache
from mediamill.model.engine_core.cuda_graphs import DecodeGraphs, DecodeStep
from mediamill.model.engine_core.host_to_device import Sender, send_visuals
from mediamill.model.engine_core.paged_cache import PagedBatch, PagedCache, PagedDecode
from mediamill.model.engine_core.prefill_attention import Piece, Prefill
from mediamill.model.engine_core.prefill_chunks import Span, spans_of
from mediamill.model.engine_core.sequence import Row
from mediamill.model.engine_core.token_bitmask import TokenBitmask
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.generation.chooser import Choice
from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.layers.attention import AttentionName
from mediamill.model.layers.shards import balance
from mediamill.model.media.image_rules import ImageRules

Cache = PagedCache | ContiguousCache
Batch = PagedBatch | ContiguousBatch


@dataclass(frozen=True)
class Prefilled:
    """The hidden states of a prefill that are wanted, [n, hidden].

    places: of each row and continuation of its part (None: the prompt itself), its part of them. Of
        a prompt it is the last token, or those that an embedding is made of; of a continuation all
        it was fed.
    visual: of each row that the vision tower alone answers, its visual tokens [tokens, hidden].
    prompt_tokens: of the rows' prompts that were computed.
    """

    hidden: torch.Tensor
    places: dict[tuple[int, int | None], range]
    visual: dict[int, torch.Tensor]
    prompt_tokens: int


class ModelRunner:
    """The network's side of the engine.

    decode_step: what runs a decode step over pages; a wrapper may take its place, for instance one
        that replays a captured graph.
    allowed: the tokens that the grammars of rows let through.
    vision_seconds: spent so far in the vision tower, as the host sees it. visual_tokens: made.
    """

    def __init__(
        self,
        model: Qwen2VL,
        rules: Mapping[VisualKind, ImageRules],
        attention: AttentionName,
        vision_patches: int,
    ) -> None:
        self.model = model
        self.rules = dict(rules)
        self.attention: AttentionName = attention
        self.vision_patches = vision_patches
        self.cache: Cache | None = None
        self.allowed = TokenBitmask(model.config.text.vocab_size, model.device)
        self.decode_step: DecodeStep = self.plain_decode_step
        self._sender = Sender(model.device)
        self.vision_seconds = 0.0
        self.visual_tokens = 0
        # Visual tokens of the last row's media, which the next row may have as well. With the media
        # themselves: a key may be an identity, which holds as long as they live.
        self._kept: dict[Hashable, tuple[VisualInput, torch.Tensor]] = {}
        self._keeping: dict[Hashable, tuple[VisualInput, torch.Tensor]] = {}

    def prefill(self, rows: Sequence[Row], cache: Cache) -> Prefilled:
        """Encode the media and prompts of rows, and store their keys and values in their room."""
        self._keeping = {}
        found = self._prefill(rows, cache)
        self._kept = self._keeping
        return found

    def forget(self) -> None:
        """Keep no visual tokens."""
        self._kept, self._keeping = {}, {}

    def _prefill(self, rows: Sequence[Row], cache: Cache) -> Prefilled:
        model = self.model
        visual = self._visual(rows)
        # Where the frequencies follow the length, no two sequences have the same keys.
        spans = spans_of(rows, apart=model.config.text.rope.follows_length)
        if not spans:
            nothing = torch.zeros(0, model.config.text.hidden_size, device=model.device)
            return Prefilled(nothing, {}, visual, 0)
        starts = [0]
        for span in spans:
            starts.append(starts[-1] + len(span.ids))
        ids = torch.tensor([i for span in spans for i in span.ids]).to(model.device)
        embeddings = model.model.embed_tokens(ids)
        self._place_media(embeddings, rows, spans, starts)
        pieces, rooms = [], []
        for span, start in zip(spans, starts, strict=False):
            room = rows[span.row].room
            pages: tuple[int, ...] = ()
            if room is not None and room.reused and span.after is None:
                pages = tuple(room.pages[: room.reused // cache.page_size])
            pieces.append(Piece(len(span.ids), pages, span.after))
            if span.continuation is None:
                own = [room for n in span.rows if (room := rows[n].room) and room.tokens]
                rooms += [(room, span.begin, start, start + len(span.ids)) for room in own]
        positions = torch.cat([span.positions for span in spans], dim=1).to(model.device)
        attend = Prefill(pieces, cache, cache.writer(rooms), self.attention, model.device)
        # The last layer spares itself the tokens that nobody looks at.
        wanted: list[int] = []
        places: dict[tuple[int, int | None], range] = {}
        for span, start in zip(spans, starts, strict=False):
            if span.is_head:
                continue
            end, before, first = start + len(span.ids), len(wanted), start + span.prompt
            pooled = rows[span.row].pooled if span.continuation is None else None
            if pooled is None:
                first = end - 1 if span.continuation is None else first
                wanted += range(first, end)
            else:
                wanted += [start + i for i in pooled]
            places[span.row, span.continuation] = range(before, len(wanted))
        index = torch.tensor(wanted).to(model.device)
        hidden = model.hidden_states(embeddings, positions, attend, index)
        computed = sum(span.prompt for span in spans if span.continuation is None)
        return Prefilled(hidden, places, visual, computed)

    def _visual(self, rows: Sequence[Row]) -> dict[int, torch.Tensor]:
        """Visual tokens of the rows that need nothing else; equal media are encoded once."""
        found = {i: row for i, row in enumerate(rows) if row.request.skips_language}
        media: dict[Hashable, VisualInput] = {}
        for row in found.values():
            media.update(zip(row.media_keys, row.request.visuals, strict=True))
        if not media:
            return {}
        encoded = self._encoded(media, rows[-1])
        return {i: torch.cat([encoded[k] for k in row.media_keys]) for i, row in found.items()}

    def _place_media(
        self,
        embeddings: torch.Tensor,
        rows: Sequence[Row],
        spans: Sequence[Span],
        starts: Sequence[int],
    ) -> None:
        """Write visual tokens over the embeddings [T, hidden] of pad tokens."""
        wanted: list[tuple[Hashable, int, int, int]] = []
        media: dict[Hashable, VisualInput] = {}
        for span, start in zip(spans, starts, strict=False):
            row, end = rows[span.row], span.begin + span.prompt
            for key, visual, pad in zip(row.media_keys, row.request.visuals, row.pads, strict=True):
                first, last = max(span.begin, pad), min(end, pad + visual.tokens)
                if first < last:
                    media.setdefault(key, visual)
                    wanted.append((key, start + first - span.begin, first - pad, last - pad))
        encoded = self._encoded(media, rows[-1])
        for key, at, first, last in wanted:
            embeddings[at : at + last - first] = encoded[key][first:last]

    def _encoded(
        self, media: Mapping[Hashable, VisualInput], last: Row
    ) -> dict[Hashable, torch.Tensor]:
        """Visual tokens of each medium: those that were kept, and new ones of the others. Those of
        the last row's media are kept for the next call.
        """
        found = {key: self._kept[key][1] for key in media if key in self._kept}
        missing = {key: visual for key, visual in media.items() if key not in found}
        if missing:
            found |= zip(missing, self._encode(list(missing.values())), strict=True)
        for key in found.keys() & set(last.media_keys):
            # A copy: what was encoded together with it need not stay.
            self._keeping[key] = media[key], found[key].clone()
        return found

    def _encode(self, media: Sequence[VisualInput]) -> list[torch.Tensor]:
        """Visual tokens of each medium, in calls of the vision tower that hold what it may."""
        began = time.perf_counter()
        found: list[torch.Tensor] = []
        group: list[VisualInput] = []
        for i, visual in enumerate(media):
            group.append(visual)
            following = len(media[i + 1].patches) if i + 1 < len(media) else self.vision_patches
            if sum(len(one.patches) for one in group) + following > self.vision_patches:
                tokens = self._encode_shared(group)
                found += torch.split(tokens, [one.tokens for one in group])
                group = []
        self.vision_seconds += time.perf_counter() - began
        self.visual_tokens += sum(visual.tokens for visual in media)
        return found

    def _encode_shared(self, group: Sequence[VisualInput]) -> torch.Tensor:
        """Visual tokens of a group, of which each rank encodes its share."""
        model = self.model
        if model.collectives.size == 1:
            there = send_visuals(self._sender, group)
            return model.visual.encode(there, self.rules, self.attention)
        owners = balance([len(one.patches) for one in group], model.collectives.size)
        mine = [owner == model.collectives.rank for owner in owners]
        there = send_visuals(self._sender, list(compress(group, mine)))
        encoded = model.visual.encode(there, self.rules, self.attention)
        total = sum(one.tokens for one in group)
        tokens = encoded.new_zeros(total, encoded.shape[1])
        chosen = [own for own, one in zip(mine, group, strict=True) for _ in range(one.tokens)]
        tokens[torch.tensor(chosen)] = encoded
        # The tokens of other ranks are zeros here, so the sum rounds nothing.
        return model.collectives.all_reduce_(tokens)

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The last tokens, int64 [B], at `positions` [B] -> logits of the next ones [B, V]."""
        if isinstance(batch, PagedBatch):
            self.cache = batch.cache
            return self.decode_step(tokens, positions, batch.block_table, batch.filled, batch.slots)
        hidden = self.model.hidden_states(
            self.model.model.embed_tokens(tokens), positions.expand(3, -1), batch
        )
        return self.model.logits(hidden)

    def agreed(self, choice: Choice) -> Choice:
        """The first rank's tokens on every rank. They are equal already if each has computed the
        same; a bit that flipped in one must not let the ranks run different rows.
        """
        self.model.collectives.broadcast_(choice.tokens)
        return choice

    def replay_graphs(self, cache: PagedCache, rows: int) -> None:
        """Let decode steps over this cache, of at most `rows` rows, be replayed CUDA graphs."""
        self.decode_step = DecodeGraphs(
            self.plain_decode_step,
            self.model.device,
            max_rows=rows,
            max_pages=-(-self.model.config.text.context_length // cache.page_size),
            scratch_page=cache.scratch_page,
            page_size=cache.page_size,
        )

    def plain_decode_step(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        block_table: torch.Tensor,
        filled: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """One decode step over pages, without waiting for the device: the tensors of `PagedBatch`,
        the last tokens int64 [B] and their positions int64 [B] -> logits [B, V].
        """
        assert isinstance(self.cache, PagedCache), "set when the cache is made"
        attend = PagedDecode(self.cache, block_table, filled, slots)
        # A pad token that was generated is a token like others.
        embeddings = self.model.model.embed_tokens(tokens)
        hidden = self.model.hidden_states(embeddings, positions.expand(3, -1), attend)
        return self.model.logits(hidden)
