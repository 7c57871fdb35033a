"""Answers each content once: rows that are exact copies of another row get its answer.

Rows are copies when all of their media are the same bytes, shown to the model in the same way, and
their prompts are the same tokens. Answers of the run's other processes are found in a registry.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from mediamill.pipeline.records import RowFailure

if TYPE_CHECKING:  # the coordinator does without torch
    from mediamill.pipeline.tasks.prepared_row import PreparedRow

_PATIENCE_S = 30.0  # for an answer of another process, which may have died
_POLL_S = 0.1

ContentRow = tuple[bytes, str, object]  # the key of a content; name and id of a row that has it


@dataclass(frozen=True)
class RowAnswer:
    """A row's answer. values: by column. duplicate_of: the id of the row that this one copies."""

    values: Mapping[str, Any]
    failure: RowFailure | None = None
    duplicate_of: object = None


@dataclass(frozen=True)
class Claim:
    """Which row of the run answers a content.

    row_id: of the first row that claimed it.
    mine: whether that is the row of this claim.
    answer: None while it is being made.
    """

    row_id: object
    mine: bool
    answer: RowAnswer | None = None


class Registry(Protocol):
    """The answers of a run by content; it may lose some."""

    def claim(self, contents: Sequence[ContentRow]) -> list[Claim]:
        """Claims each content for its row, and returns whose it is."""

    def put(self, answers: Mapping[bytes, RowAnswer]) -> None:
        """Stores answers by content."""


Answers = Mapping[int, RowAnswer]  # by the number of the row


class Deduplicator:
    """Answers rows, each content once as far as the registry remembers.

    patience_s: how long to wait for an answer that another process makes.
    """

    def __init__(self, registry: Registry, patience_s: float = _PATIENCE_S) -> None:
        self._registry = registry
        self._patience_s = patience_s

    def answers(
        self,
        rows: "Mapping[int, PreparedRow]",
        generate: "Callable[[Mapping[int, PreparedRow]], Answers]",
    ) -> dict[int, RowAnswer]:
        """Returns the answer of each row. generate: answers rows without regard to copies."""
        copies: dict[bytes, list[int]] = {}
        for number, row in rows.items():
            copies.setdefault(row.content_hash, []).append(number)
        firsts = {content: numbers[0] for content, numbers in copies.items()}
        claims = self._claims(copies, firsts, rows)
        mine = {content for content, claim in claims.items() if claim.mine and not claim.answer}
        answers = self._generate(mine, firsts, rows, generate)
        # Wait for other processes only after our own answers are stored: no two of them deadlock.
        answers |= {content: claim.answer for content, claim in claims.items() if claim.answer}
        answers |= self._wait(copies.keys() - answers.keys(), firsts, rows)
        late = copies.keys() - answers.keys()
        answers |= self._generate(late, firsts, rows, generate)
        row_answers: dict[int, RowAnswer] = {}
        for content, numbers in copies.items():
            original = rows[numbers[0]].row_id if content in late else claims[content].row_id
            for number in numbers:
                duplicate_of = None if rows[number].row_id == original else original
                row_answers[number] = replace(answers[content], duplicate_of=duplicate_of)
        return row_answers

    def _claims(
        self,
        contents: Collection[bytes],
        firsts: Mapping[bytes, int],
        rows: "Mapping[int, PreparedRow]",
    ) -> dict[bytes, Claim]:
        """firsts: the number of the first row of each content."""
        if not contents:
            return {}
        content_rows = [
            (content, rows[firsts[content]].name, rows[firsts[content]].row_id)
            for content in contents
        ]
        return dict(zip(contents, self._registry.claim(content_rows), strict=True))

    def _generate(
        self,
        contents: Collection[bytes],
        firsts: Mapping[bytes, int],
        rows: "Mapping[int, PreparedRow]",
        generate: "Callable[[Mapping[int, PreparedRow]], Answers]",
    ) -> dict[bytes, RowAnswer]:
        """Returns the answers by content, and stores them in the registry."""
        if not contents:
            return {}
        # In the order of the rows, so that the engine sees them as they come.
        chosen = {content: number for content, number in firsts.items() if content in contents}
        answers = generate({number: rows[number] for number in chosen.values()})
        by_content = {content: answers[number] for content, number in chosen.items()}
        self._registry.put(by_content)
        return by_content

    def _wait(
        self,
        contents: set[bytes],
        firsts: Mapping[bytes, int],
        rows: "Mapping[int, PreparedRow]",
    ) -> dict[bytes, RowAnswer]:
        """Returns the answers that other processes give within the patience."""
        answers: dict[bytes, RowAnswer] = {}
        until = time.monotonic() + self._patience_s
        while contents and time.monotonic() < until:
            claims = self._claims([key for key in firsts if key in contents], firsts, rows)
            answers |= {key: claim.answer for key, claim in claims.items() if claim.answer}
            contents = contents - answers.keys()
            if contents:
                time.sleep(_POLL_S)
        return answers
