"""Kills processes of a job by SIGKILL, at times and of kinds that are drawn from a seed.

The kinds of a few kills are the first ones of a list; those of many come from a shuffled list, in
fixed proportions. Most kills wait for some more answered rows, so that the job can finish; one in
four follows soon after the previous one, during the recovery from it.
"""

import random
import time
from dataclasses import dataclass, field

from tests import processes
from tests.soak.cluster import LocalCluster
from tests.soak.driver import Driver

PROPORTIONS = {"driver": 4, "prepare": 4, "generate": 4, "worker": 4, "node": 3, "coordinator": 1}
FIRST = ("node", "driver", "prepare", "generate", "worker")  # of a short run
TITLES = {
    "prepare": "_FetchAndPrepare",
    "generate": "_GenerateAndParse",
    "coordinator": "Coordinator",
}
# Fraction of the rows by which all kills are due, in a short run and in a long one: the number of
# rows increases in jumps.
BY_SHORT, BY_LONG = 0.4, 0.9
SOON = 0.25  # fraction of kills that follow soon
SOON_S = 4.0


@dataclass
class Kills:
    """done: number by kind. processes: that ended; several when a node is killed."""

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
        self._kinds_left = self._kinds(wanted)
        self._wanted, self._rows = wanted, rows
        self._due_rows, self._due_s = self._next_rows(0), 0.0
        self._began = time.monotonic()
        self.kills = Kills()

    def _kinds(self, wanted: int) -> list[str]:
        if wanted <= len(FIRST):
            return list(FIRST[:wanted])
        kinds: list[str] = []
        while len(kinds) < wanted:
            round_kinds = [kind for kind, number in PROPORTIONS.items() for _ in range(number)]
            kinds += self._random.sample(round_kinds, len(round_kinds))
        return kinds[:wanted]

    @property
    def left(self) -> int:
        return self._wanted - self.kills.total

    def kill_if_due(self, driver: Driver, rows_seen: int) -> bool:
        """Kills the next kind in turn that has a process, if it is time. Returns whether it did."""
        if not self.left or rows_seen < self._due_rows or time.monotonic() < self._due_s:
            return False
        for place, kind in enumerate(self._kinds_left):
            if hit := self._kill(kind, driver):
                del self._kinds_left[place]
                break
        else:
            return False  # the job has just ended, or is just starting
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
        """Rows at which the next kill is due: the remaining kills share the remaining rows."""
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
        part = TITLES.get(kind, "")
        targets = sorted(p for p, title in self._cluster.workers().items() if part in title)
        return processes.end_at_once([self._random.choice(targets)]) if targets else 0
