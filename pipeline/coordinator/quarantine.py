"""Quarantines rows whose worker process died, so that a poison row cannot crash them endlessly.

Each worker of an actor pool reports the rows that it begins and finishes. When Ray replaces a
worker, it has died, and every row that it had begun and not finished is a suspect:

1. They are retried in small isolated groups: nothing else runs in the process meanwhile.
2. If a group crashes its process too, its rows are retried one by one, isolated.
3. A row that crashes its process twice while it is isolated is poison: it becomes an error row.

A healthy row is declared poison only if unrelated causes kill its process four times in a row,
each time while that row is in flight. Crashes of a whole node are not counted.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

Ordinal = tuple[int, int]  # the row's manifest file and its index there

_GROUP_ROWS = 8


class CrashLevel(IntEnum):
    """The evidence against a row: in which setting its process crashed last."""

    BATCH = 1  # among all the rows that the process had in flight
    GROUP = 2  # in an isolated group
    ALONE = 3  # isolated on its own
    POISON = 4  # isolated on its own, for the second time


@dataclass(frozen=True)
class Admission:
    """How a worker must run the rows of one call; rows that are not named run together.

    Rows are named by their index in the call.

    isolated: groups that run one after the other, with nothing else in the process.
    poison: rows that must not run.
    stop: no row may begin, since the run ends.
    """

    isolated: tuple[tuple[int, ...], ...] = ()
    poison: tuple[int, ...] = ()
    stop: bool = False


@dataclass(frozen=True)
class WorkerId:
    """One process of a pool. actor: its Ray actor, which keeps its id when it is restarted."""

    pool: str
    actor: str
    process: str
    node: str


@dataclass
class _Worker:
    """The rows that a process has in flight. isolated: they run with nothing else beside them."""

    id: WorkerId
    in_flight: set[Ordinal] = field(default_factory=set)
    isolated: bool = False


class Quarantine:
    """Tracks the rows in flight and the suspects.

    Memory is proportional to the rows in flight and the poison rows, not to the rows of the job.

    is_alive: whether a node, by its id, is still in the cluster.
    """

    def __init__(self, is_alive: Callable[[str], bool]) -> None:
        self._is_alive = is_alive
        self._workers: dict[str, _Worker] = {}  # by actor
        self._suspects: dict[tuple[str, Ordinal], CrashLevel] = {}

    def enter(self, worker: WorkerId) -> None:
        """Registers a process that has started. The actor's previous process, if any, has died."""
        previous = self._workers.get(worker.actor)
        if previous is not None and previous.id == worker:
            return  # a retried call
        self._workers[worker.actor] = _Worker(worker)
        if previous is not None and previous.in_flight and self._is_alive(previous.id.node):
            self._suspect(previous)

    def begin(self, worker: WorkerId, rows: Sequence[Ordinal]) -> Admission:
        """Decides how a process must run the rows of a call.

        Rows that the result does not name are in flight from now on. A process must not call this
        while it runs isolated rows.
        """
        state = self._current(worker)
        if state is None:
            return Admission()
        if state.isolated:  # the report that these rows are done is still on its way
            state.in_flight, state.isolated = set(), False
        levels = [self._suspects.get((worker.pool, row)) for row in rows]
        state.in_flight |= {row for row, level in zip(rows, levels, strict=True) if level is None}
        poison = [index for index, level in enumerate(levels) if level is CrashLevel.POISON]
        batch = [index for index, level in enumerate(levels) if level is CrashLevel.BATCH]
        groups = [batch[start : start + _GROUP_ROWS] for start in range(0, len(batch), _GROUP_ROWS)]
        groups += [
            [index]
            for index, level in enumerate(levels)
            if level in (CrashLevel.GROUP, CrashLevel.ALONE)
        ]
        return Admission(tuple(map(tuple, groups)), tuple(poison))

    def begin_isolated(self, worker: WorkerId, rows: Sequence[Ordinal]) -> None:
        """Marks rows as in flight, with nothing else in the process."""
        state = self._current(worker)
        if state is not None:
            state.in_flight, state.isolated = set(rows), True

    def done(self, worker: WorkerId, rows: Collection[Ordinal]) -> None:
        """Marks rows as finished, with or without an error."""
        for row in rows:
            # Poison is remembered: Ray retries the whole call if a later row of it crashes.
            if self._suspects.get((worker.pool, row)) is not CrashLevel.POISON:
                self._suspects.pop((worker.pool, row), None)
        state = self._current(worker)
        if state is not None:
            state.in_flight.difference_update(rows)

    def _current(self, worker: WorkerId) -> _Worker | None:
        """Returns None when the report is late: its process has died since."""
        state = self._workers.setdefault(worker.actor, _Worker(worker))
        return state if state.id == worker else None

    def _suspect(self, dead: _Worker) -> None:
        for row in dead.in_flight:
            level = self._suspects.get((dead.id.pool, row))
            if not dead.isolated:
                raised = CrashLevel.BATCH
            elif level is CrashLevel.ALONE:
                raised = CrashLevel.POISON
            elif len(dead.in_flight) == 1:
                raised = CrashLevel.ALONE
            else:
                raised = CrashLevel.GROUP
            self._suspects[dead.id.pool, row] = raised
