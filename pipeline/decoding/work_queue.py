"""Turns rows that wait into messages for the slots, so that each slot is at rows side by side.

The answers of one slot lie one after the other in memory; where the rows do so too, a column needs
no copy of them. How rows are answered is not known here.
"""

from collections import deque
from collections.abc import Hashable, Sequence

from mediamill.pipeline.decoding.worker_handle import Row

_TOGETHER = 256 * 1024  # bytes of the media of one message, if it has several rows


class WorkQueue:
    """The rows of one table that wait. waiting: how many."""

    def __init__(self, rows: deque[Row], slots: int) -> None:
        self._slots = slots
        self._lanes: dict[Hashable, deque[Row]] = {None: rows}
        self.waiting = len(rows)

    def take(self, slot: Hashable, most: int) -> list[Row]:
        """The rows of the slot's next message, at least one and at most so many."""
        lane = self._lanes.setdefault(slot, deque())
        if not lane:
            # All of what is nobody's; of what another slot will be at, the later half.
            owner = None if self._lanes[None] else max(self._lanes, key=self._length)
            count = self._length(owner)
            for _ in range(count if owner is None else -(-count // 2)):
                lane.appendleft(self._lanes[owner].pop())
        count = min(most, -(-len(lane) // self._slots))
        rows = [lane.popleft()]
        size = rows[0].question.size
        while len(rows) < count:
            size += lane[0].question.size
            if size > _TOGETHER:
                break
            rows.append(lane.popleft())
        self.waiting -= len(rows)
        return rows

    def give(self, slot: Hashable, rows: Sequence[Row]) -> None:
        """Rows of the slot's last message that have to begin anew."""
        self._lanes[slot].extendleft(reversed(rows))
        self.waiting += len(rows)

    def _length(self, slot: Hashable) -> int:
        return len(self._lanes[slot])
