"""Turns the rows of a prefill into spans: runs of new tokens that lie side by side.

What several rows begin with is one span, from which those of the rows go on. What becomes of the
tokens is not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mediamill.model.engine_core.sequence import Row


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence, or of the beginning that some have in common.

    rows: their numbers. begin: the place in the prompt of the first token. prompt: how many tokens
    are of the prompt; the others are of a continuation. continuation: its number, or None when the
    span is of the prompt alone. after: number of the span that it goes on from. is_head: it ends
    before the prompt does.
    positions: int64 [3, tokens].
    """

    rows: tuple[int, ...]
    begin: int
    ids: list[int]
    positions: torch.Tensor
    prompt: int
    continuation: int | None = None
    after: int | None = None
    is_head: bool = False

    @property
    def row(self) -> int:
        """The first of its rows, or its only one."""
        return self.rows[0]


def spans_of(rows: Sequence[Row], apart: bool) -> list[Span]:
    """Beginnings that stand alone, then those that go on from pages, then what goes on from these.

    apart: no two sequences have the same keys, as where the frequencies follow the length.
    """
    led: dict[int, list[int]] = {}
    numbers = {id(row): number for number, row in enumerate(rows)}
    for number, row in enumerate(rows):
        if row.leader is not None:
            led.setdefault(numbers[id(row.leader)], []).append(number)
    first = []
    for number, row in enumerate(rows):
        if row.request.skips_language or row.leader is not None:
            continue
        reused = 0 if row.room is None else row.room.reused
        end = row.head if number in led else len(row.prompt)
        first.append(_of_prompt((number, *led.get(number, ())), row, reused, end))
    continued = []
    for number, row in enumerate(rows):
        for k, tokens in enumerate(row.part):
            # The last token is only looked for, never looked at.
            fed = list(tokens[:-1])
            places = torch.arange(row.following, row.following + len(fed)).expand(3, -1)
            if apart and fed:
                whole = torch.cat((row.positions, places), dim=1)
                first.append(Span((number,), 0, row.prompt + fed, whole, len(row.prompt), k))
            elif fed:
                continued.append((number, fed, places, k))
    first.sort(key=lambda span: bool((room := rows[span.row].room) and room.reused))
    tails = [
        _of_prompt((number,), rows[number], head.begin + head.prompt, len(rows[number].prompt), i)
        for i, head in enumerate(first)
        if head.is_head
        for number in head.rows
    ]
    own = {span.row: i for i, span in enumerate(first) if span.continuation is None}
    return [
        *first,
        *tails,
        *(
            Span((number,), len(rows[number].prompt), fed, places, 0, k, own[number])
            for number, fed, places, k in continued
        ),
    ]


def _of_prompt(
    numbers: tuple[int, ...], row: Row, begin: int, end: int, after: int | None = None
) -> Span:
    ids, positions = row.prompt[begin:end], row.positions[:, begin:end]
    is_head = end < len(row.prompt)
    return Span(numbers, begin, ids, positions, end - begin, None, after, is_head)
