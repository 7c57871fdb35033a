"""Chooses whom to kill and when, from a seed, and does so by SIGKILL.

A few kills are of the first kinds of a list; the kinds of many come from a shuffled deck, so that
each is met in its share. Most kills come when some more rows are answered, so that the job can end;
one in four comes soon after the one before, in the middle of what that one has set off.
"""

import random
import time
from dataclasses import dataclass, field

from tests import processes
from tests.soak.cluster import LocalCluster
from tests.soak.driver import Driver

DECK = {"driver": 4, "prepare": 4, "generate": 4, "worker": 4, "node": 3, "desk": 1}
FIRST = ("node", "driver", "prepare", "generate", "worker")  # of a short run
WORDS = {"prepare": "_FetchAndPrepare", "generate": "_GenerateAndParse", "desk": "Coordinator"}
# Share of the rows by which all kills are due, in a short run and in a long one: rows are seen in
# jumps, the last ones too.
BY_SHORT, BY_LONG = 0.4, 0.9
SOON = 0.25  # share of kills that come soon
SOON_S = 4.0


@dataclass
class Kills:
    """done: by kind. processes: that ended, more than one when a node dies."""

    done: dict[str, int] = field(default_factory=dict)
    processes: int = 0
    log: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.done.values())


class Killer:
    """Kills `wanted` times while a job of `rows` rows runs."""

    def __init__(self, seed: int, wanted: int, rows: int, cluster: LocalCluster) -> None:
        self._random = random.Random(seed)
        self._cluster = cluster
        self._deck = self._kinds(wanted)
        self._wanted, self._rows = wanted, rows
        self._due_rows, self._due_s = self._next_rows(0), 0.0
        self._began = time.monotonic()
        self.kills = Kills()

    def _kinds(self, wanted: int) -> list[str]:
        if wanted <= len(FIRST):
            return list(FIRST[:wanted])
        deck: list[str] = []
        while len(deck) < wanted:
            cards = [kind for kind, number in DECK.items() for _ in range(number)]
            deck += self._random.sample(cards, len(cards))
        return deck[:wanted]

    @property
    def left(self) -> int:
        return self._wanted - self.kills.total

    def visit(self, driver: Driver, rows_seen: int) -> bool:
        """Kills if it is time to: the kind whose turn it is, else the next that is there."""
        if not self.left or rows_seen < self._due_rows or time.monotonic() < self._due_s:
            return False
        for place, kind in enumerate(self._deck):
            if hit := self._kill(kind, driver):
                del self._deck[place]
                break
        else:
            return False  # it has just ended, or is just starting
        self.kills.done[kind] = self.kills.done.get(kind, 0) + 1
        self.kills.processes += hit
        seconds = time.monotonic() - self._began
        self.kills.log.append(f"{seconds:7.1f} s  {rows_seen:7} rows  {kind}")
        if self._random.random() < SOON:
            self._due_rows = rows_seen
            self._due_s = time.monotonic() + self._random.uniform(0, SOON_S)
        else:
            self._due_rows = self._next_rows(rows_seen)
            self._due_s = time.monotonic() + self._random.uniform(0, 1)
        return True

    def _next_rows(self, rows_seen: int) -> int:
        """Rows after which the next kill comes: what is left is shared among those to come."""
        left = self._wanted if rows_seen == 0 else self.left
        by = BY_SHORT if self._wanted <= len(FIRST) else BY_LONG
        share = max(0.0, by * self._rows - rows_seen) / (left + 1)
        return rows_seen + int(share * self._random.uniform(0.5, 1))

    def _kill(self, kind: str, driver: Driver) -> int:
        if kind == "driver":
            return processes.end_at_once([driver.process.pid])
        if kind == "node":
            index = self._random.randrange(1, len(self._cluster.raylets))
            hit = self._cluster.kill_node(index)
            self._cluster.replace_node(index)
            return hit
        word = WORDS.get(kind, "")
        targets = sorted(p for p, title in self._cluster.workers().items() if word in title)
        return processes.end_at_once([self._random.choice(targets)]) if targets else 0
