"""Answers each content once: rows that are exact copies of another row get its answer.

Rows are copies when all of their media are the same bytes, shown to the model in the same way, and
their prompts are the same tokens. Answers of the run's other processes are found in a registry.
"""

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from mediamill.pipeline.records import RowFailure

if TYPE_CHECKING:  # the coordinator does without torch
    from mediamill.pipeline.tasks.prepared_row import PreparedRow

    Rows = Mapping[bytes, PreparedRow]  # the first row of each content

_PATIENCE_S = 30.0  # to wait for an answer of another process, which may have died
_POLL_S = 0.1

ContentRow = tuple[bytes, str, object]  # the key of a content; name and id of a row that has it


@dataclass(frozen=True)
class RowAnswer:
    """A row's answer. values: by column. duplicate_of: the id of the row whose answer it is."""

    values: Mapping[str, Any]
    failure: RowFailure | None = None
    duplicate_of: object = None


@dataclass(frozen=True)
class Claim:
    """Which row of the run answers a content.

    row_id: of the first row that claimed it.
    mine: whether that row made this claim.
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

    patience_s: seconds to wait for an answer that another process makes.
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
        firsts: dict[bytes, PreparedRow] = {}  # the first row of each content, in the rows' order
        for row in rows.values():
            firsts.setdefault(row.content_hash, row)
        claims = self._claims(firsts)
        originals = {content: claim.row_id for content, claim in claims.items()}
        answers = {content: claim.answer for content, claim in claims.items() if claim.answer}
        missing = _without(firsts, answers)
        mine = {content: row for content, row in missing.items() if claims[content].mine}
        answers |= self._generate(mine, generate)
        # Wait for other processes only after our own answers are stored: no two of them deadlock.
        answers |= self._wait(_without(missing, mine))
        late = _without(firsts, answers)
        answers |= self._generate(late, generate)
        originals |= {content: row.row_id for content, row in late.items()}
        row_answers: dict[int, RowAnswer] = {}
        for number, row in rows.items():
            original = originals[row.content_hash]
            duplicate_of = None if row.row_id == original else original
            row_answers[number] = replace(answers[row.content_hash], duplicate_of=duplicate_of)
        return row_answers

    def _claims(self, firsts: "Rows") -> dict[bytes, Claim]:
        if not firsts:
            return {}
        content_rows = [(content, row.name, row.row_id) for content, row in firsts.items()]
        return dict(zip(firsts, self._registry.claim(content_rows), strict=True))

    def _generate(
        self, firsts: "Rows", generate: "Callable[[Mapping[int, PreparedRow]], Answers]"
    ) -> dict[bytes, RowAnswer]:
        """Returns the answers by content, and stores them in the registry."""
        if not firsts:
            return {}
        answers = generate(dict(enumerate(firsts.values())))
        by_content = {content: answers[number] for number, content in enumerate(firsts)}
        self._registry.put(by_content)
        return by_content

    def _wait(self, firsts: "Rows") -> dict[bytes, RowAnswer]:
        """Returns the answers that other processes give within the patience."""
        answers: dict[bytes, RowAnswer] = {}
        until = time.monotonic() + self._patience_s
        while firsts and time.monotonic() < until:
            claims = self._claims(firsts)
            answers |= {key: claim.answer for key, claim in claims.items() if claim.answer}
            firsts = _without(firsts, answers)
            if firsts:
                time.sleep(_POLL_S)
        return answers


def _without(firsts: "Rows", contents: Container[bytes]) -> "dict[bytes, PreparedRow]":
    return {content: row for content, row in firsts.items() if content not in contents}
