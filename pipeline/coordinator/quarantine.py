"""Turns the deaths of processes into what is to become of the rows that they worked on.

A process of an actor pool says which rows it begins and which it has done. When another process
stands in its place, it has died, and the rows that it had begun and not done are under suspicion:

1. Dying in the company of other rows proves little. The rows are done again in small groups, each
   of which has its process for itself.
2. The rows of a group whose process dies again are done again one by one, each alone.
3. A row whose process dies twice while it is alone is poison: it becomes an error row.

So an innocent row becomes poison only if other causes end its process four times in a row, each
time in the moments when it is at work there. What a whole node takes along does not count at all.

Holds what is in work, not what is finished; how processes are started and how they call is not
known here.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

Ordinal = tuple[int, int]  # the row's manifest file and its index there

_GROUP_ROWS = 8


class Suspicion(IntEnum):
    """What is known against a row."""

    COMPANY = 1  # its process died while it was at work with many others
    GROUP = 2  # and again, while it was at work with few
    ALONE = 3  # and again, while it was alone
    POISON = 4  # and again


@dataclass(frozen=True)
class Verdict:
    """What a process is to do with the rows of one call, each by its place in the call.

    apart: groups that have the process for themselves, one after the other. poison: not at all.
    stop: nothing is to be begun any more, the run ends. All others are done together.
    """

    apart: tuple[tuple[int, ...], ...] = ()
    poison: tuple[int, ...] = ()
    stop: bool = False


@dataclass(frozen=True)
class Who:
    """One process of a pool. actor: whose place it has, and which outlives it."""

    pool: str
    actor: str
    process: str
    node: str


@dataclass
class _Process:
    """What a process has in work. apart: it has been told to do these rows and no others."""

    who: Who
    work: set[Ordinal] = field(default_factory=set)
    apart: bool = False


class Quarantine:
    """What is in work. Memory follows the rows in work and the poison, not the rows of the job.

    is_alive: whether a node of the cluster is.
    """

    def __init__(self, is_alive: Callable[[str], bool]) -> None:
        self._is_alive = is_alive
        self._processes: dict[str, _Process] = {}  # by actor
        self._suspects: dict[tuple[str, Ordinal], Suspicion] = {}

    def enter(self, who: Who) -> None:
        """A process has started. Who was in its place has died."""
        before = self._processes.get(who.actor)
        if before is not None and before.who == who:
            return  # the same word again
        self._processes[who.actor] = _Process(who)
        if before is not None and before.work and self._is_alive(before.who.node):
            self._suspect(before)

    def begin(self, who: Who, rows: Sequence[Ordinal]) -> Verdict:
        """What is to become of rows that have come to a process.

        Those that the verdict does not name are in work now. The process may only ask while it does
        nothing apart.
        """
        process = self._of(who)
        if process is None:
            return Verdict()
        if process.apart:  # the word that these rows are done is still on its way
            process.work, process.apart = set(), False
        known = [self._suspects.get((who.pool, row)) for row in rows]
        process.work |= {row for row, found in zip(rows, known, strict=True) if found is None}
        poison = [place for place, found in enumerate(known) if found is Suspicion.POISON]
        few = [place for place, found in enumerate(known) if found is Suspicion.COMPANY]
        groups = [few[start : start + _GROUP_ROWS] for start in range(0, len(few), _GROUP_ROWS)]
        groups += [
            [place]
            for place, found in enumerate(known)
            if found in (Suspicion.GROUP, Suspicion.ALONE)
        ]
        return Verdict(tuple(map(tuple, groups)), tuple(poison))

    def begin_apart(self, who: Who, rows: Sequence[Ordinal]) -> None:
        """Rows are in work now, and no other row of this process is."""
        process = self._of(who)
        if process is not None:
            process.work, process.apart = set(rows), True

    def done(self, who: Who, rows: Collection[Ordinal]) -> None:
        """Rows have left the process, as answers or as errors."""
        for row in rows:
            # Poison is remembered: a call comes again from its start when a later row of it kills.
            if self._suspects.get((who.pool, row)) is not Suspicion.POISON:
                self._suspects.pop((who.pool, row), None)
        process = self._of(who)
        if process is not None:
            process.work.difference_update(rows)

    def _of(self, who: Who) -> _Process | None:
        """None for what a process said before it died, and what comes late."""
        process = self._processes.setdefault(who.actor, _Process(who))
        return process if process.who == who else None

    @property
    def in_work(self) -> int:
        """Rows that are being worked on or under suspicion; poison is neither."""
        suspects = sum(found is not Suspicion.POISON for found in self._suspects.values())
        return suspects + sum(len(one.work) for one in self._processes.values())

    def _suspect(self, dead: _Process) -> None:
        for row in dead.work:
            found = self._suspects.get((dead.who.pool, row))
            if not dead.apart:
                worse = Suspicion.COMPANY
            elif found is Suspicion.ALONE:
                worse = Suspicion.POISON
            else:
                worse = Suspicion.ALONE if len(dead.work) == 1 else Suspicion.GROUP
            self._suspects[dead.who.pool, row] = worse
