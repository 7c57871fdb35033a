"""Turns rows of which some are exact copies of others into answers, each content asked once.

Rows are copies when all of their media are the same bytes, looked at in the same way, and their
prompts are the same tokens. What was answered elsewhere in the run is known to who is handed in.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from mediamill.pipeline.records import RowFailure

if TYPE_CHECKING:  # the run's desk holds claims, and has no use for torch
    from mediamill.pipeline.tasks.prepared_row import PreparedRow

_PATIENCE_S = 30.0  # for an answer that is being made elsewhere: who makes it may have died
_POLL_S = 0.1


@dataclass(frozen=True)
class RowAnswer:
    """What a row is told. values: by column. duplicate_of: the id of the row that was asked."""

    values: Mapping[str, Any]
    failure: RowFailure | None = None
    duplicate_of: object = None


@dataclass(frozen=True)
class Claim:
    """Who answers a content. row_id: of the first row that claimed it. mine: the one that asks now.

    told: what was answered; None while it is being made.
    """

    row_id: object
    mine: bool
    told: RowAnswer | None = None


class Registry(Protocol):
    """Who answers what in a run; may forget."""

    def claim(self, asked: Sequence[tuple[bytes, str, object]]) -> list[Claim]:
        """asked: of each content its key, the name of a row that has it, and the row's id."""

    def tell(self, told: Mapping[bytes, RowAnswer]) -> None:
        """By key, what was answered."""


class Deduplicator:
    """Asks each content once, as far as the registry remembers."""

    def __init__(self, registry: Registry, patience_s: float = _PATIENCE_S) -> None:
        self._registry = registry
        self._patience_s = patience_s

    def told(
        self,
        rows: "Mapping[int, PreparedRow]",
        ask: "Callable[[Mapping[int, PreparedRow]], Mapping[int, RowAnswer]]",
    ) -> dict[int, RowAnswer]:
        """ask: answers rows without regard to copies."""
        groups: dict[bytes, list[int]] = {}
        for number, row in rows.items():
            groups.setdefault(row.content_hash, []).append(number)
        claims = self._claims(groups, rows)
        mine = {key for key, claim in claims.items() if claim.mine and claim.told is None}
        found = self._ask(mine, groups, rows, ask)
        # What is made elsewhere is waited for only now: nobody who waits keeps others waiting.
        found |= {key: claim.told for key, claim in claims.items() if claim.told is not None}
        found |= self._wait(groups.keys() - found.keys(), groups, rows)
        late = groups.keys() - found.keys()
        found |= self._ask(late, groups, rows, ask)
        told: dict[int, RowAnswer] = {}
        for key, numbers in groups.items():
            asked = claims[key].row_id if key not in late else rows[numbers[0]].row_id
            for number in numbers:
                own = rows[number].row_id == asked
                told[number] = replace(found[key], duplicate_of=None if own else asked)
        return told

    def _claims(
        self, groups: Mapping[bytes, list[int]], rows: "Mapping[int, PreparedRow]"
    ) -> dict[bytes, Claim]:
        first = [(key, rows[numbers[0]]) for key, numbers in groups.items()]
        asked = [(key, row.name, row.row_id) for key, row in first]
        return dict(zip(groups, self._registry.claim(asked), strict=True)) if asked else {}

    def _ask(
        self,
        keys: "set[bytes]",
        groups: Mapping[bytes, list[int]],
        rows: "Mapping[int, PreparedRow]",
        ask: "Callable[[Mapping[int, PreparedRow]], Mapping[int, RowAnswer]]",
    ) -> dict[bytes, RowAnswer]:
        if not keys:
            return {}
        first = {key: numbers[0] for key, numbers in groups.items() if key in keys}
        answers = ask({number: rows[number] for number in first.values()})
        found = {key: answers[number] for key, number in first.items()}
        self._registry.tell(found)
        return found

    def _wait(
        self,
        keys: "set[bytes]",
        groups: Mapping[bytes, list[int]],
        rows: "Mapping[int, PreparedRow]",
    ) -> dict[bytes, RowAnswer]:
        """What others have answered in time."""
        found: dict[bytes, RowAnswer] = {}
        until = time.monotonic() + self._patience_s
        while keys and time.monotonic() < until:
            claims = self._claims({key: groups[key] for key in groups if key in keys}, rows)
            found |= {key: claim.told for key, claim in claims.items() if claim.told is not None}
            keys = keys - found.keys()
            if keys:
                time.sleep(_POLL_S)
        return found
