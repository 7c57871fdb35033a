"""Divides a prefill into chunks: runs of new tokens that are packed one after the other.

A prefix that several sequences share is one chunk; the rest of each sequence follows it.
"""

from collections import abc
from dataclasses import dataclass

import torch

from mediamill.model.engine_core.scheduler import ScheduledPrefill
from mediamill.model.engine_core.sequence import Sequence


@dataclass(frozen=True)
class PrefillChunk:
    """New tokens of one sequence, or of a prefix that some share.

    members: indices of the sequences.
    start: index in the prompt of the first token.
    positions: int64 [3, tokens].
    prompt_tokens: how many of the tokens are prompt; the others are of a continuation.
    continuation: its index; None when the chunk is all prompt.
    pages: full pages of the cache that hold all tokens before it.
    after: instead, index of the chunk whose context and tokens come before it.
    is_shared_prefix: the chunk ends before the prompts do.
    """

    members: abc.Sequence[int]
    start: int
    ids: list[int]
    positions: torch.Tensor
    prompt_tokens: int
    continuation: int | None = None
    after: int | None = None
    pages: tuple[int, ...] = ()
    is_shared_prefix: bool = False

    @property
    def has_context(self) -> bool:
        return bool(self.pages) or self.after is not None

    @property
    def sequence(self) -> int:
        """Index of its first or only sequence."""
        return self.members[0]


def build_chunks(
    scheduled: ScheduledPrefill, page_size: int, repeat_prompts: bool
) -> list[PrefillChunk]:
    """Returns the chunks in the order of the packed call: those without context, those that
    continue cached pages, and those that continue another chunk.

    repeat_prompts: compute the prompt again for each continuation; needed where the rotary
    frequencies, and so the keys, depend on the length of the sequence.
    """
    sequences = scheduled.sequences
    followers = {i for prefix in scheduled.shared_prefixes.values() for i in prefix.followers}
    first: list[PrefillChunk] = []
    for index, seq in enumerate(sequences):
        if seq.request.skips_language or index in followers:
            continue
        prefix = scheduled.shared_prefixes.get(index)
        members = range(prefix.start, prefix.stop) if prefix else (index,)
        end = prefix.tokens if prefix else len(seq.prompt)
        pages = seq.allocation.pages[: seq.reused // page_size] if seq.allocation else ()
        first.append(_prompt_chunk(members, seq, seq.reused, end, pages=tuple(pages)))
    continued: list[tuple[int, list[int], torch.Tensor, int]] = []
    for index, (seq, continuations) in enumerate(
        zip(sequences, scheduled.continuations, strict=True)
    ):
        for k, tokens in enumerate(continuations):
            # The last token is only scored; nothing follows from it.
            inputs = list(tokens[:-1])
            start = seq.next_position
            positions = torch.arange(start, start + len(inputs)).expand(3, -1)
            if repeat_prompts and inputs:
                whole, length = torch.cat((seq.positions, positions), dim=1), len(seq.prompt)
                first.append(PrefillChunk((index,), 0, seq.prompt + inputs, whole, length, k))
            elif inputs:
                continued.append((index, inputs, positions, k))
    first.sort(key=lambda chunk: sequences[chunk.sequence].reused > 0)
    rests = [
        _prompt_chunk((i,), sequences[i], chunk.start + chunk.prompt_tokens, after=number)
        for number, chunk in enumerate(first)
        if chunk.is_shared_prefix
        for i in chunk.members
    ]
    chunk_of = {chunk.sequence: i for i, chunk in enumerate(first) if chunk.continuation is None}
    return [
        *first,
        *rests,
        *(
            PrefillChunk((i,), len(sequences[i].prompt), inputs, positions, 0, k, chunk_of[i])
            for i, inputs, positions, k in continued
        ),
    ]


def _prompt_chunk(
    members: abc.Sequence[int],
    seq: Sequence,
    start: int,
    end: int | None = None,
    after: int | None = None,
    pages: tuple[int, ...] = (),
) -> PrefillChunk:
    ids, positions = seq.prompt[start:end], seq.positions[:, start:end]
    is_shared = start + len(ids) < len(seq.prompt)
    return PrefillChunk(members, start, ids, positions, len(ids), None, after, pages, is_shared)
