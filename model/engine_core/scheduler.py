"""Turns a queue of rows into what one step can prefill, first come, first served.

Knows budgets and the cache's room; neither the network nor tokens. A row at the head that does not
fit yet holds the queue, so that none waits for ever.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mediamill.model.engine_core.kv_budget import out_of_memory
from mediamill.model.engine_core.model_runner import Cache
from mediamill.model.engine_core.sequence import Row

# Prefills in a row that must go well before a limit that memory has set is doubled again.
_RECOVERY = 8
# Where the pages of a beginning are gathered, using them must spare this part of the prompt.
_WORTH = 8


@dataclass(frozen=True)
class SchedulerLimits:
    """What one step may take in, beyond its first row. prefill_tokens: new tokens of prompts and
    continuations; vision_patches: patches of their media.
    """

    prefill_tokens: int
    vision_patches: int


class OomBackoff:
    """How many rows are worked on at once: fewer after memory ran out, more again when all goes
    well.
    """

    def __init__(self) -> None:
        self._most: int | None = None
        self._good = 0

    def bound(self, rows: int) -> int:
        """At most so many of `rows`."""
        return rows if self._most is None else min(rows, self._most)

    def halve(self, rows: int) -> None:
        """Memory ran out with `rows` at once."""
        self._most, self._good = max(1, rows // 2), 0

    def succeed(self, rows: int) -> None:
        """It went well with `rows` at once."""
        if self._most is None or rows < self._most:
            return
        self._good += 1
        if self._good >= _RECOVERY:
            self._most, self._good = 2 * self._most, 0


class Scheduler:
    """The queue in front of a cache. waiting: its rows, the next one first."""

    def __init__(self, limits: SchedulerLimits, shares: bool) -> None:
        """shares: beginnings that other rows have computed are used."""
        self.limits = limits
        self.waiting: deque[Row] = deque()
        self.relief = OomBackoff()
        self._shares = shares

    def admit(self, cache: Cache, free_rows: int, running: bool) -> list[Row]:
        """Rows for the next prefill, from the head of the queue, each with its room.

        running: other rows hold room, so that waiting helps. Raises the error of the system when
        there is no memory for the room of the first row, and nothing to wait for.
        """
        rows: list[Row] = []
        coming: set[bytes] = set()
        tokens = patches = 0
        while self.waiting and len(rows) < self.relief.bound(free_rows):
            row = self.waiting[0]
            row.leader, row.head = None, 0
            known = self._known(row, cache)
            reused = known * cache.page_size
            leader, head = self._leader(rows, row, reused)
            if leader is not None:
                # Pages would spare less, and both have to go on from the same ones.
                known, reused = leader.spared // cache.page_size, head
            row.take_part(self.limits.prefill_tokens - (len(row.prompt) - reused))
            work = row.work - reused
            if rows and (
                tokens + work > self.limits.prefill_tokens
                or patches + row.patches_from(head) > self.limits.vision_patches
                or (leader is None and self._gains_by_waiting(row, known, coming, cache.page_size))
            ):
                break
            try:
                room = cache.open(row.needed, row.names[:known])
            except Exception as error:
                if not out_of_memory(error) or not (running or rows):
                    raise
                room = None
            if room is None:
                break
            room.used = len(row.prompt)
            row.room = room
            if leader is not None:
                row.leader, leader.head = leader, head
            rows.append(self.waiting.popleft())
            coming.update(row.names if row.needed else ())
            tokens += work
            patches += row.patches_from(head)
        return rows

    def put_back(self, rows: Sequence[Row], cache: Cache) -> None:
        """Rows that were admitted and have not begun wait again, at the head, in their order."""
        for row in reversed(rows):
            if row.room is not None:
                cache.close(row.room)
                row.room = None
            self.waiting.appendleft(row)

    def remove(self, request_id: str) -> Row | None:
        """Take a row out of the queue."""
        for row in self.waiting:
            if row.request.id == request_id:
                self.waiting.remove(row)
                return row
        return None

    def _known(self, row: Row, cache: Cache) -> int:
        """Pages at the beginning of the row that are there already and worth using."""
        if not self._shares or row.request.mode == "embed":
            return 0
        # The last token is computed in any case: the next one follows from its hidden state.
        known = cache.pool.known(row.names[: (len(row.prompt) - 1) // cache.page_size])
        if cache.device.type != "cpu" and known * cache.page_size * _WORTH < len(row.prompt):
            return 0
        return known

    def _leader(self, rows: Sequence[Row], row: Row, reused: int) -> tuple[Row | None, int]:
        """The row that this one follows, and the tokens at the beginning of both that are worth
        computing once: more than each has of pages. None and 0 if there are too few.

        rows: those admitted so far. reused: what the row would have of pages.
        """
        if not (rows and self._shares and row.generates):
            return None, 0
        leader = rows[-1].leader or rows[-1]
        if not leader.generates:
            return None, 0
        head = min(leader.common(row), leader.head or len(leader.prompt))
        worth = head * 2 >= len(row.prompt) and head > max(reused, leader.spared)
        return (leader, head) if worth else (None, 0)

    def _gains_by_waiting(
        self, row: Row, known: int, coming: Iterable[bytes], page_size: int
    ) -> bool:
        """Whether rows of this step are about to compute half of the row's prompt or more."""
        if not self._shares or row.request.mode == "embed":
            return False
        usable = row.names[known : (len(row.prompt) - 1) // page_size]
        shared = next((i for i, name in enumerate(usable) if name not in coming), len(usable))
        return shared * page_size * 2 >= len(row.prompt)
