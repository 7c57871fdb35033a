"""The two steps of the engine: the prefill of new rows, and one more token for running ones.

Turns rows with their room in the cache into hidden states and logits. Everything is packed; which
rows run, and what becomes of their tokens, is not known here.
"""

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import torch

from model.batching.allowed import Allowed
from model.batching.decode_graph import DecodeGraphs, DecodeStep
from model.batching.paged_cache import PagedBatch, PagedCache, PagedDecode
from model.batching.prefill import Piece, Prefill
from model.batching.rows import Row
from model.batching.shelves import ShelfBatch, ShelfCache
from model.batching.transfer import Sender, send_visuals
from model.generation.chooser import Choice
from model.inputs import VisualInput, VisualKind
from model.media.image_rules import ImageRules
from model.network.attention import AttentionName
from model.parallel.shards import shares
from model.qwen2_vl import Qwen2VL

Cache = PagedCache | ShelfCache
Batch = PagedBatch | ShelfBatch


@dataclass(frozen=True)
class Span:
    """The new tokens of one sequence in a prefill.

    row: number of the row. prompt: how many of them are of its prompt, from `reused` on; the others
    are of a continuation. continuation: its number, or None when the span is the prompt's own.
    after: number of the span that it goes on from.
    """

    row: int
    ids: list[int]
    positions: torch.Tensor
    prompt: int
    continuation: int | None = None
    after: int | None = None


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


class Steps:
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
        self.allowed = Allowed(model.config.text.vocab_size, model.device)
        self.decode_step: DecodeStep = self.plain_decode_step
        self._sender = Sender(model.device)
        self.vision_seconds = 0.0
        self.visual_tokens = 0

    def prefill(self, rows: Sequence[Row], cache: Cache) -> Prefilled:
        """Encode the media and prompts of rows, and store their keys and values in their room."""
        model = self.model
        visual = self._visual(rows)
        spans = self._spans(rows)
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
            if room is not None and room.tokens and span.continuation is None:
                rooms.append((room, start, start + len(span.ids)))
        positions = torch.cat([span.positions for span in spans], dim=1).to(model.device)
        attend = Prefill(pieces, cache, cache.writer(rooms), self.attention, model.device)
        # The last layer spares itself the tokens that nobody looks at.
        wanted: list[int] = []
        places: dict[tuple[int, int | None], range] = {}
        for span, start in zip(spans, starts, strict=False):
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
        encoded = dict(zip(media, self._encode(list(media.values())), strict=True))
        return {i: torch.cat([encoded[k] for k in row.media_keys]) for i, row in found.items()}

    def _spans(self, rows: Sequence[Row]) -> list[Span]:
        """Prompts that stand alone, then those that go on from pages, then continuations."""
        prompts = []
        for number, row in enumerate(rows):
            if row.request.skips_language:
                continue
            reused = 0 if row.room is None else row.room.reused
            ids = row.prompt[reused:]
            prompts.append(Span(number, ids, row.positions[:, reused:], len(ids)))
        # Where the frequencies follow the length, no two sequences have the same keys.
        apart = self.model.config.text.rope.follows_length
        continued = []
        for number, row in enumerate(rows):
            for k, tokens in enumerate(row.part):
                # The last token is only looked for, never looked at.
                fed = list(tokens[:-1])
                places = torch.arange(row.following, row.following + len(fed)).expand(3, -1)
                if apart and fed:
                    whole = torch.cat((row.positions, places), dim=1)
                    prompts.append(Span(number, row.prompt + fed, whole, len(row.prompt), k))
                elif fed:
                    continued.append((number, fed, places, k))
        prompts.sort(key=lambda span: bool((room := rows[span.row].room) and room.reused))
        own = {span.row: i for i, span in enumerate(prompts) if span.continuation is None}
        return prompts + [
            Span(number, fed, places, 0, k, own[number]) for number, fed, places, k in continued
        ]

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
            row = rows[span.row]
            begin = len(row.prompt) - span.prompt
            for key, visual, pad in zip(row.media_keys, row.request.visuals, row.pads, strict=True):
                skipped = max(0, begin - pad)
                if not span.prompt or skipped >= visual.tokens:
                    continue
                media.setdefault(key, visual)
                at = start + max(0, pad - begin)
                wanted.append((key, at, skipped, visual.tokens))
        if not media:
            return
        encoded = dict(zip(media, self._encode(list(media.values())), strict=True))
        for key, at, skipped, tokens in wanted:
            embeddings[at : at + tokens - skipped] = encoded[key][skipped:]

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
        if model.ranks.size == 1 or model.visual.parts > 1:
            there = send_visuals(self._sender, group)
            return model.visual.encode(there, self.rules, self.attention)
        owners = shares([len(one.patches) for one in group], model.ranks.size)
        mine = [owner == model.ranks.rank for owner in owners]
        there = send_visuals(self._sender, list(compress(group, mine)))
        encoded = model.visual.encode(there, self.rules, self.attention)
        total = sum(one.tokens for one in group)
        tokens = encoded.new_zeros(total, encoded.shape[1])
        chosen = [own for own, one in zip(mine, group, strict=True) for _ in range(one.tokens)]
        tokens[torch.tensor(chosen)] = encoded
        return model.ranks.sum_(tokens)  # the others' tokens are zeros here: nothing is rounded

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
        self.model.ranks.first_(choice.tokens)
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
