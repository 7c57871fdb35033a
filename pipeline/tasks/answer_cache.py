"""Remembers what was answered for an output, so that copies need not be asked.

Answers are kept in a temporary file, since there may be one for each row of a job.
"""

import json
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.tasks.dedupe import Claim, RowAnswer

_MOST_BYTES = 4 * 1024**3
_PAGE_BYTES = 4096
_CACHE_KB = 64 * 1024  # of the file, in memory
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """What was told, and the row that was asked: its name and its id."""

    name: str
    row_id: object
    told: RowAnswer


class AnswerCache:
    """Every content that was claimed and answered. most_bytes: of the file; what comes when it is
    full is not remembered, and asked again.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._claimed: dict[bytes, tuple[str, object]] = {}  # being answered: name and id of a row
        # Without a name, it is a file of SQLite's own, of which nothing stays behind a process that
        # is killed. One thread at a time uses it.
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in (
            f"page_size = {_PAGE_BYTES}",
            f"max_page_count = {most_bytes // _PAGE_BYTES}",
            f"cache_size = -{_CACHE_KB}",
            "journal_mode = MEMORY",
            "synchronous = OFF",
        ):
            self._file.execute(f"PRAGMA {setting}")
        self._file.execute("CREATE TABLE answers (content BLOB PRIMARY KEY, answer TEXT)")
        self._full = False

    def claim(self, asked: Sequence[tuple[bytes, str, object]]) -> list[Claim]:
        """Of each content (key, name and id of a row), who answers it.

        A row that asks again, because its first try was lost, is the one that answers.
        """
        return [self._claim(*one) for one in asked]

    def tell(self, told: Mapping[bytes, RowAnswer]) -> None:
        """Keeps answers of claimed contents; the first of each, if there are several."""
        claimed = {key: self._claimed.pop(key) for key in told if key in self._claimed}
        self.remember({key: Answered(*one, told[key]) for key, one in claimed.items()})

    def remember(self, answered: Mapping[bytes, Answered]) -> None:
        """Keeps answers of contents that nobody has claimed here."""
        if self._full or not answered:
            return
        rows = [(key, _packed(one)) for key, one in answered.items()]
        try:
            self._file.execute("BEGIN")
            self._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
            self._file.execute("COMMIT")
        except sqlite3.OperationalError as error:  # the file may grow no more, or the disk is full
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            self._full = True
            _logger.warning("dedupe: no further answers are remembered: %s", error)

    def _claim(self, key: bytes, name: str, row_id: object) -> Claim:
        found = self._file.execute("SELECT answer FROM answers WHERE content = ?", [key]).fetchone()
        if found is not None:
            one = _unpacked(found[0])
            return Claim(one.row_id, one.name == name, one.told)
        mine, first = self._claimed.setdefault(key, (name, row_id))
        return Claim(first, mine == name)


def _packed(one: Answered) -> str:
    failure = one.told.failure and [one.told.failure.code, one.told.failure.message]
    return json.dumps([one.name, one.row_id, dict(one.told.values), failure])


def _unpacked(text: str) -> Answered:
    name, row_id, values, failure = json.loads(text)
    return Answered(name, row_id, RowAnswer(values, failure and RowFailure(*failure)))


@dataclass(frozen=True)
class AnswerCalls:
    """The same in the run's desk."""

    actor: Any

    def claim(self, asked: Sequence[tuple[bytes, str, object]]) -> list[Claim]:
        import ray

        found: list[Claim] = ray.get(self.actor.claim.remote(asked))
        return found

    def tell(self, told: Mapping[bytes, RowAnswer]) -> None:
        self.actor.tell.remote(told)
