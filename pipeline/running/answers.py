"""Remembers what was answered in a run, as far as memory goes, so that copies need not be asked.

Turns claims on contents into who answers them. What an answer is, is not known here.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.asking.copies import Claim, Told

_MOST_BYTES = 256 * 1024**2
_BYTES_A_CHARACTER = 4  # of an answer as JSON: Python's own objects are larger
_ENTRY_BYTES = 400  # of an entry besides its answer: key, name, id


@dataclass
class _Entry:
    """name: of the row that answers. size: bytes of what was told, about."""

    name: str
    row_id: object
    told: Told | None = None
    size: int = _ENTRY_BYTES


class Answers:
    """The contents seen last. most_bytes: that they may take, about."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def claim(self, asked: Sequence[tuple[bytes, str, object]]) -> list[Claim]:
        """Of each content (key, name and id of a row), who answers it.

        A row that asks again, because its first try was lost, is the one that answers.
        """
        return [self._claim(*one) for one in asked]

    def tell(self, told: Mapping[bytes, Told]) -> None:
        """Keeps answers. Those of contents that are forgotten already are let go of."""
        for key, one in told.items():
            entry = self._entries.get(key)
            if entry is not None and entry.told is None:
                size = _BYTES_A_CHARACTER * len(json.dumps(one.values, default=str))
                entry.told, entry.size = one, entry.size + size
                self._bytes += size
        while self._bytes > self._most_bytes and self._entries:
            _, gone = self._entries.popitem(last=False)
            self._bytes -= gone.size

    def _claim(self, key: bytes, name: str, row_id: object) -> Claim:
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(name, row_id)
            self._bytes += _ENTRY_BYTES
            return Claim(row_id, mine=True)
        self._entries.move_to_end(key)
        return Claim(entry.row_id, entry.name == name, entry.told)


@dataclass(frozen=True)
class AnswerCalls:
    """The same in the run's desk."""

    actor: Any

    def claim(self, asked: Sequence[tuple[bytes, str, object]]) -> list[Claim]:
        import ray

        found: list[Claim] = ray.get(self.actor.claim.remote(asked))
        return found

    def tell(self, told: Mapping[bytes, Told]) -> None:
        self.actor.tell.remote(told)
