"""Remembers the answers of a run and of earlier runs by content, so that copies reuse them.

The answers are in a temporary file, since there may be one for each row of a job. Those of earlier
runs are loaded from the output, when a run is resumed or its manifest has grown.
"""

import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.pipeline.tasks.dedupe import Claim, ContentRow, RowAnswer
from mediamill.schemas import columns as c

_MAX_BYTES = 4 * 1024**3
_PAGE_BYTES = 4096
_CACHE_KB = 64 * 1024  # of the file, in memory
_LOADED_ROWS = 1024  # converted to Python objects at once: vectors are large
_FINISHED = ""  # stands for the name of a finished row; no unfinished row has this name
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """An answer, and the name and id of the row that it was made for."""

    name: str
    row_id: object
    answer: RowAnswer


class AnswerCache:
    """The claimed contents and their answers.

    max_bytes: of the file; later answers are not stored, and their contents are answered again.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._claimed: dict[bytes, tuple[str, object]] = {}  # no answer yet: name and id of a row
        # SQLite makes a file without a name, which disappears even if the process is killed. The
        # threads that use it take turns.
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in (
            f"page_size = {_PAGE_BYTES}",
            f"max_page_count = {max_bytes // _PAGE_BYTES}",
            f"cache_size = -{_CACHE_KB}",
            "journal_mode = MEMORY",
            "synchronous = OFF",
        ):
            self._file.execute(f"PRAGMA {setting}")
        self._file.execute("CREATE TABLE answers (content BLOB PRIMARY KEY, answer TEXT)")
        self._full = False

    def claim(self, contents: Sequence[ContentRow]) -> list[Claim]:
        """Claims each content for its row, unless another row has claimed it before.

        A row that claims again, because its first try was lost, keeps its claim.
        """
        return [self._claim(*content) for content in contents]

    def put(self, answers: Mapping[bytes, RowAnswer]) -> None:
        """Stores the answers of claimed contents; only the first answer of each."""
        claimed = {key: self._claimed.pop(key) for key in answers if key in self._claimed}
        self._store({key: _Entry(*row, answers[key]) for key, row in claimed.items()})

    def load(self, output: Place, columns: Sequence[str]) -> None:
        """Stores the answers of the visible rows of an output.

        columns: of an answer. Copies and failed rows are left out: a failed row may succeed in
        another run. Raises the errors of the file system.
        """
        needed = [c.ID, c.CONTENT_HASH, *columns, c.STATUS, c.DUPLICATE_OF]
        for name in visible_files(output):
            for table in _row_groups(output / name, needed):
                is_ok = pc.equal(table[c.STATUS], c.STATUS_OK)
                table = table.filter(pc.and_(is_ok, pc.is_null(table[c.DUPLICATE_OF])))
                table = table.drop_columns([c.STATUS, c.DUPLICATE_OF])
                for first in range(0, table.num_rows, _LOADED_ROWS):
                    self._store(dict(map(_loaded, table.slice(first, _LOADED_ROWS).to_pylist())))

    def _store(self, entries: Mapping[bytes, _Entry]) -> None:
        if self._full or not entries:
            return
        rows = [(content, _packed(entry)) for content, entry in entries.items()]
        try:
            self._file.execute("BEGIN")
            self._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
            self._file.execute("COMMIT")
        except sqlite3.OperationalError as error:  # the file has its largest size; or a full disk
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            self._full = True
            _logger.warning("dedupe: no further answers are remembered: %s", error)

    def _claim(self, content: bytes, name: str, row_id: object) -> Claim:
        query = "SELECT answer FROM answers WHERE content = ?"
        stored = self._file.execute(query, [content]).fetchone()
        if stored is not None:
            entry = _unpacked(stored[0])
            return Claim(entry.row_id, entry.name == name, entry.answer)
        owner_name, owner_id = self._claimed.setdefault(content, (name, row_id))
        return Claim(owner_id, owner_name == name)


def _packed(entry: _Entry) -> str:
    failure = entry.answer.failure and [entry.answer.failure.code, entry.answer.failure.message]
    return json.dumps([entry.name, entry.row_id, dict(entry.answer.values), failure])


def _unpacked(text: str) -> _Entry:
    name, row_id, values, failure = json.loads(text)
    return _Entry(name, row_id, RowAnswer(values, failure and RowFailure(*failure)))


def _loaded(row: dict[str, Any]) -> tuple[bytes, _Entry]:
    content, row_id = bytes.fromhex(row.pop(c.CONTENT_HASH)), row.pop(c.ID)
    return content, _Entry(_FINISHED, row_id, RowAnswer(row))


def _row_groups(file: Place, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields one row group after the other, since a file may be larger than memory."""
    number, count = 0, 1
    while number < count:
        table, count = storage.with_retries(file, partial(_read, file.path, number, columns))
        yield table
        number += 1


def _read(path: str, number: int, columns: Sequence[str], fs: Any) -> tuple[pa.Table, int]:
    """Returns a row group (a table without rows if there is none), and how many there are."""
    with fs.open(path, "rb") as opened, pq.ParquetFile(opened) as parquet:
        groups = range(parquet.num_row_groups)
        return parquet.read_row_groups(groups[number : number + 1], columns=columns), len(groups)


@dataclass(frozen=True)
class AnswerCalls:
    """The answer cache of the run's coordinator, called from another process."""

    actor: Any

    def claim(self, contents: Sequence[ContentRow]) -> list[Claim]:
        """See `AnswerCache`."""
        import ray

        claims: list[Claim] = ray.get(self.actor.claim.remote(contents))
        return claims

    def put(self, answers: Mapping[bytes, RowAnswer]) -> None:
        """See `AnswerCache`. Does not wait."""
        self.actor.put_answers.remote(answers)
