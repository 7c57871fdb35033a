"""Runs the model for the engine: the prefill of new sequences, and one decode step of running ones.

All sequences of a step are packed into one call, without padding.
"""

import time
from collections import abc
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import accumulate, compress

import torch

from mediamill.model.engine_core.allocation import KVWrite
from mediamill.model.engine_core.cuda_graphs import DecodeGraphs, DecodeInputs, DecodeStep
from mediamill.model.engine_core.host_to_device import HostToDeviceCopier
from mediamill.model.engine_core.kv_cache import Cache, DecodeBatch
from mediamill.model.engine_core.paged_cache import PagedBatch, PagedCache, PagedDecode
from mediamill.model.engine_core.prefill_attention import PrefillAttention
from mediamill.model.engine_core.prefill_chunks import PrefillChunk, build_chunks
from mediamill.model.engine_core.scheduler import ScheduledPrefill
from mediamill.model.engine_core.sequence import Sequence
from mediamill.model.engine_core.token_bitmask import TokenBitmask
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.generation.chooser import Choice
from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.layers.attention import AttentionBackend, AttentionName
from mediamill.model.layers.shards import balance
from mediamill.model.media.image_rules import ImageRules


@dataclass(frozen=True)
class PrefillOutput:
    """What a prefill computed.

    hidden: the final hidden states that are needed, [n, hidden].
    rows: the rows of `hidden` of each (index of a sequence, index of its continuation). None stands
        for the prompt: its last token, or the tokens that an embedding is pooled from. A
        continuation has those of all its input tokens.
    visual: by sequence, the visual tokens [tokens, hidden] of those that skip the language model.
    prompt_tokens: how many prompt tokens were computed.
    """

    hidden: torch.Tensor
    rows: dict[tuple[int, int | None], range]
    visual: dict[int, torch.Tensor]
    prompt_tokens: int


class ModelRunner:
    """Runs a model for one engine.

    decode_step: runs a decode step over pages: plainly, or by replaying CUDA graphs.
    vision_seconds, visual_tokens: host seconds spent in the vision tower, and what it made.
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
        self.cache: PagedCache | None = None
        self.token_bitmask = TokenBitmask(model.config.text.vocab_size, model.device)
        self.decode_step: DecodeStep = self.plain_decode_step
        self._copier = HostToDeviceCopier(model.device)
        self.vision_seconds = 0.0
        self.visual_tokens = 0
        # Visual tokens of the last sequence's media, which the next sequence may share. The media
        # are held too: a key may be the id of a tensor, which is valid only while it lives.
        self._encoder_cache: dict[Hashable, tuple[VisualInput, torch.Tensor]] = {}
        self._new_encoder_cache: dict[Hashable, tuple[VisualInput, torch.Tensor]] = {}

    def prefill(self, scheduled: ScheduledPrefill, cache: Cache) -> PrefillOutput:
        """Encodes media and prompts, and stores their keys and values in the cache."""
        self._new_encoder_cache = {}
        output = self._prefill(scheduled, cache)
        self._encoder_cache = self._new_encoder_cache
        return output

    def clear_encoder_cache(self) -> None:
        """Drops the cached visual tokens."""
        self._encoder_cache, self._new_encoder_cache = {}, {}

    def _prefill(self, scheduled: ScheduledPrefill, cache: Cache) -> PrefillOutput:
        model, sequences = self.model, scheduled.sequences
        visual = self._vision_only(sequences)
        follows_length = model.config.text.rope.follows_length
        chunks = build_chunks(scheduled, cache.page_size, repeat_prompts=follows_length)
        if not chunks:
            empty = torch.zeros(0, model.config.text.hidden_size, device=model.device)
            return PrefillOutput(empty, {}, visual, 0)
        starts = [0, *accumulate(len(chunk.ids) for chunk in chunks)]
        ids = torch.tensor([i for chunk in chunks for i in chunk.ids]).to(model.device)
        embeddings = model.model.embed_tokens(ids)
        self._place_media(embeddings, sequences, chunks, starts)
        writes: list[KVWrite] = [
            (allocation, chunk.start, start, start + len(chunk.ids))
            for chunk, start in zip(chunks, starts, strict=False)
            if chunk.continuation is None
            for i in chunk.members
            if (allocation := sequences[i].allocation) and allocation.tokens
        ]
        positions = torch.cat([chunk.positions for chunk in chunks], dim=1).to(model.device)
        attend = PrefillAttention(chunks, cache, cache.writer(writes), self.attention, model.device)
        # The last layer is computed only for the tokens whose hidden states are used.
        needed: list[int] = []
        rows: dict[tuple[int, int | None], range] = {}
        for chunk, start in zip(chunks, starts, strict=False):
            if chunk.is_shared_prefix:
                continue
            before, end = len(needed), start + len(chunk.ids)
            if chunk.continuation is not None:
                needed += range(start + chunk.prompt_tokens, end)
            elif (pooled := sequences[chunk.sequence].pooled_tokens) is not None:
                needed += [start + i for i in pooled]
            else:
                needed.append(end - 1)
            rows[chunk.sequence, chunk.continuation] = range(before, len(needed))
        index = torch.tensor(needed).to(model.device)
        hidden = model.hidden_states(embeddings, positions, attend, index)
        computed = sum(chunk.prompt_tokens for chunk in chunks if chunk.continuation is None)
        return PrefillOutput(hidden, rows, visual, computed)

    def _vision_only(self, sequences: abc.Sequence[Sequence]) -> dict[int, torch.Tensor]:
        """Returns the visual tokens of the sequences that skip the language model, by index."""
        selected = {i: seq for i, seq in enumerate(sequences) if seq.request.skips_language}
        media: dict[Hashable, VisualInput] = {}
        for seq in selected.values():
            media.update(zip(seq.media_keys, seq.request.visuals, strict=True))
        if not media:
            return {}
        encoded = self._visual_tokens(media, sequences[-1])
        return {i: torch.cat([encoded[k] for k in seq.media_keys]) for i, seq in selected.items()}

    def _place_media(
        self,
        embeddings: torch.Tensor,
        sequences: abc.Sequence[Sequence],
        chunks: abc.Sequence[PrefillChunk],
        starts: abc.Sequence[int],
    ) -> None:
        """Writes visual tokens over the embeddings [T, hidden] of pad tokens."""
        copies: list[tuple[Hashable, int, int, int]] = []
        media: dict[Hashable, VisualInput] = {}
        for chunk, start in zip(chunks, starts, strict=False):
            seq, chunk_end = sequences[chunk.sequence], chunk.start + chunk.prompt_tokens
            for key, visual, pad in zip(
                seq.media_keys, seq.request.visuals, seq.media_starts, strict=True
            ):
                first, end = max(chunk.start, pad), min(chunk_end, pad + visual.tokens)
                if first < end:
                    media.setdefault(key, visual)
                    copies.append((key, start + first - chunk.start, first - pad, end - pad))
        encoded = self._visual_tokens(media, sequences[-1])
        for key, target, first, end in copies:
            embeddings[target : target + end - first] = encoded[key][first:end]

    def _visual_tokens(
        self, media: Mapping[Hashable, VisualInput], last: Sequence
    ) -> dict[Hashable, torch.Tensor]:
        """Returns the visual tokens of each medium, cached or newly encoded. Those of the last
        sequence's media are cached for the next call.
        """
        encoded = {key: self._encoder_cache[key][1] for key in media if key in self._encoder_cache}
        missing = {key: visual for key, visual in media.items() if key not in encoded}
        if missing:
            encoded |= zip(missing, self._encode(list(missing.values())), strict=True)
        for key in encoded.keys() & set(last.media_keys):
            # A copy, so that what was encoded together with it is freed.
            self._new_encoder_cache[key] = media[key], encoded[key].clone()
        return encoded

    def _encode(self, media: abc.Sequence[VisualInput]) -> list[torch.Tensor]:
        """Returns the visual tokens of each medium, in calls of bounded size."""
        start = time.perf_counter()
        encoded: list[torch.Tensor] = []
        group: list[VisualInput] = []
        for i, visual in enumerate(media):
            group.append(visual)
            next_patches = len(media[i + 1].patches) if i + 1 < len(media) else self.vision_patches
            if sum(len(member.patches) for member in group) + next_patches > self.vision_patches:
                tokens = self._encode_group(group)
                encoded += torch.split(tokens, [member.tokens for member in group])
                group = []
        self.vision_seconds += time.perf_counter() - start
        self.visual_tokens += sum(visual.tokens for visual in media)
        return encoded

    def _encode_group(self, group: abc.Sequence[VisualInput]) -> torch.Tensor:
        """Returns the visual tokens of a group; each rank encodes its share of the media."""
        model = self.model
        if model.collectives.size == 1:
            visuals = self._copier.copy_visuals(group)
            return model.visual.encode(visuals, self.rules, self.attention)
        owners = balance([len(visual.patches) for visual in group], model.collectives.size)
        is_mine = [owner == model.collectives.rank for owner in owners]
        visuals = self._copier.copy_visuals(list(compress(group, is_mine)))
        encoded = model.visual.encode(visuals, self.rules, self.attention)
        tokens = encoded.new_zeros(sum(visual.tokens for visual in group), encoded.shape[1])
        mask = torch.tensor(is_mine).repeat_interleave(torch.tensor([v.tokens for v in group]))
        tokens[mask] = encoded
        return model.collectives.all_reduce_(tokens)  # every token is zero on all ranks but one

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, batch: DecodeBatch
    ) -> torch.Tensor:
        """Returns the logits [B, V] of the next tokens, from the last tokens, int64 [B], at
        `positions` [B].
        """
        if isinstance(batch, PagedBatch):
            self.cache = batch.cache
            return self.decode_step(
                DecodeInputs(tokens, positions, batch.block_table, batch.seq_lens, batch.slots)
            )
        return self._decode_logits(tokens, positions, batch)

    def _decode_logits(
        self, tokens: torch.Tensor, positions: torch.Tensor, attend: AttentionBackend
    ) -> torch.Tensor:
        # A generated pad token is embedded like any other token.
        embeddings = self.model.model.embed_tokens(tokens)
        return self.model.logits(
            self.model.hidden_states(embeddings, positions.expand(3, -1), attend)
        )

    def broadcast(self, choice: Choice) -> Choice:
        """Replaces the tokens on every rank by those of the first rank, in place. The ranks compute
        equal tokens; a bit that flipped in one must not make them run different sequences.
        """
        self.model.collectives.broadcast_(choice.tokens)
        return choice

    def replay_graphs(self, cache: PagedCache, batch_size: int) -> None:
        """Runs decode steps over this cache, of at most `batch_size` sequences, as CUDA graphs."""
        self.decode_step = DecodeGraphs(
            self.plain_decode_step,
            self.model.device,
            max_batch_size=batch_size,
            max_pages=-(-self.model.config.text.context_length // cache.page_size),
            scratch_page=cache.scratch_page,
            page_size=cache.page_size,
        )

    def plain_decode_step(self, inputs: DecodeInputs) -> torch.Tensor:
        """Returns the logits [B, V] of one step over pages, without device synchronization."""
        assert self.cache is not None, "set by decode"
        attend = PagedDecode(self.cache, inputs.block_table, inputs.seq_lens, inputs.slots)
        return self._decode_logits(inputs.tokens, inputs.positions, attend)
