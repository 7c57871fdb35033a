"""The owner of an output's truth: which rows are finished, durable whatever is killed and when.

A run begins by adding a `start` record to the output's log: from then on an older run that still
lives finds its next number taken, and stops. Within a run one actor adds the `commit` records, what
comes together in one. A record finishes rows, and decides which of the finished rows become the
next visible file as soon as a folder has enough of them.

This file knows rows, tokens and names; what a file holds, and how it becomes visible, is
publish.py's.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from mediamill.pipeline.ledger.log import (
    HIDDEN,
    TakenOverError,
    Writer,
    append,
    catch_up,
    taken_over,
)
from mediamill.pipeline.ledger.state import (
    VERSION,
    Counts,
    Group,
    KnownFile,
    LedgerState,
    Part,
    Record,
    Rows,
    text_of,
)
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

__all__ = [
    "HIDDEN",
    "Commit",
    "CommitReply",
    "Ledger",
    "TakenOverError",
    "begin",
    "catch_up",
    "load",
]

_GROUPS = 4  # that a write task gets at once: a folder's are merged by several tasks
_LOAN_S = 120.0  # after which a task that has not published its groups counts as dead


@dataclass(frozen=True)
class Commit:
    """Rows that one write task has staged, to be finished all at once.

    token: names this try of this task. rows: what is staged. counts: theirs. parts: the same rows
    by folder of the result; a folder may come more than once.
    """

    token: str
    rows: Rows
    counts: Counts
    parts: tuple[tuple[str, Part], ...] = ()


@dataclass(frozen=True)
class CommitReply:
    """What a write task is told.

    taken: rows because of which nothing was committed. groups: files that it should make visible
    and report. unneeded: tokens whose staged objects nobody reads any more.
    """

    taken: Rows = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    unneeded: tuple[str, ...] = ()


def load(output: Place) -> LedgerState:
    """What the output's log says; an empty state when there is none.

    Raises JobError when the log is damaged.
    """
    state = LedgerState()
    catch_up(output, state)
    return state


def begin(
    output: Place,
    state: LedgerState,
    run: str,
    header: Record,
    files: Sequence[KnownFile],
    rows_per_file: int,
) -> None:
    """Makes `run` the only one that can commit, and tells the log of new and grown manifest files.

    header: what the output is bound to; written when it is new, else the caller has compared it.
    rows_per_file: so many rows become a visible file. Raises TakenOverError when another run starts
    at the same moment.
    """
    before = state.run
    if state.header is None and not append(
        output, state, {"kind": "open", "version": VERSION, **header}
    ):
        raise taken_over(output, state)
    while state.run == before:  # what an older run commits in between does not matter
        start = {"kind": "start", "run": run, "rows_per_file": rows_per_file}
        if append(output, state, {**start, "files": _changed(state, files)}):
            return
    raise taken_over(output, state)


def _changed(state: LedgerState, files: Sequence[KnownFile]) -> list[Record]:
    numbers = {file.name: number for number, file in enumerate(state.files)}
    entries = []
    for file in files:
        number = numbers.setdefault(file.name, len(numbers))
        if number >= len(state.files) or state.files[number] != file:
            entries.append({"number": number, **asdict(file)})
    return entries


def end(output: Place, state: LedgerState, summary: Record) -> bool:
    """Notes what the run did; from then on none of its processes can commit.

    False when another run has begun, which does not need the note.
    """
    run = state.run
    catch_up(output, state)
    while state.run == run:
        if append(output, state, {"kind": "end", "run": run, "summary": summary}):
            return True
    return False


def record_of(
    state: LedgerState,
    commits: Sequence[Commit] = (),
    published: Iterable[str] = (),
    everything: bool = False,
) -> Record:
    """The next record: finishes the rows of commits, and forgets groups whose files are visible.

    It groups what fills whole files, where commits add to a folder, or else everything.
    """
    added: Counter[str] = Counter(state.waiting if everything else ())
    for folder, part in (one for commit in commits for one in commit.parts):
        added[folder] += part.rows
    groups: list[tuple[str, int, str]] = []
    for folder, rows in added.items():
        left = rows if everything else rows + state.waiting.get(folder, 0)
        while left >= state.rows_per_file or (everything and left):
            # No other record has this number: names never meet.
            name = f"part-{state.sequence + 1:012}-{len(groups):05}.parquet"
            groups.append((folder, min(left, state.rows_per_file), f"{folder}/{name}".lstrip("/")))
            left -= groups[-1][1]
    return {
        "kind": "commit",
        "run": state.run,
        "commits": [_entry(commit) for commit in commits],
        "groups": groups,
        "published": list(published),
    }


def _entry(commit: Commit) -> Record:
    parts = [(folder, part.offset, part.length, part.rows) for folder, part in commit.parts]
    return {
        "token": commit.token,
        "rows": {str(number): text_of(indices) for number, indices in commit.rows.items()},
        "counts": asdict(commit.counts),
        "parts": parts,
    }


@dataclass(eq=False)
class _Ask:
    """What a write task waits for: its commit, or that what it has published is noted."""

    commit: Commit | None = None
    published: tuple[str, ...] = ()
    answer: asyncio.Future[CommitReply] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Ledger:
    """The actor: answers the write tasks of one run, after making the answer durable.

    Of two actors of a run, as when the first one was cut off and is not dead, the one that wrote
    its fence last can commit.
    """

    def __init__(
        self, output_url: str, run: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._output = storage.resolve(output_url)
        self._state = load(self._output)  # also after a restart of the actor
        self._run = run
        self._clock = clock
        self._writer: Writer | None = None
        self._waiting: list[_Ask] = []
        self._writing = asyncio.Lock()
        self._lent: dict[str, float] = {}  # when a group was given to a task

    async def taken(self, rows: Rows) -> Rows:
        """Those of the rows that are finished already."""
        return self._state.taken(rows)

    async def commit(self, commit: Commit) -> CommitReply:
        """Finishes all rows, or finishes none and tells which were taken.

        The same commit may come again, from a task whose first answer was lost.
        Raises TakenOverError when a newer run owns the output.
        """
        return await self._ask(_Ask(commit))

    async def published(self, names: Sequence[str]) -> CommitReply:
        """Takes note that the files of these groups are visible, and gives the task more of them.

        Raises TakenOverError when a newer run owns the output.
        """
        return await self._ask(_Ask(published=tuple(names)))

    async def counts(self) -> tuple[Counts, Counts]:
        """Of the whole output, and of this run."""
        return self._state.counts, self._state.run_counts

    async def _ask(self, ask: "_Ask") -> CommitReply:
        self._waiting.append(ask)
        while not ask.answer.done():
            # Whoever gets the lock writes for all who wait; the others find their answer there.
            async with self._writing:
                if not ask.answer.done():
                    await self._write()
        return ask.answer.result()

    async def _write(self) -> None:
        asks, self._waiting = self._waiting, []
        published: dict[str, Group] = {}

        def build() -> Record | None:
            published.clear()
            for name in (name for ask in asks for name in ask.published):
                if name in self._state.groups:
                    published[name] = self._state.groups[name]
            accepted = self._acceptable(asks)
            if not accepted and not published:
                return None
            return record_of(self._state, accepted, published)

        try:
            await asyncio.to_thread(self._add, build)
        except Exception as error:  # noqa: BLE001 - the waiting tasks are who must know
            for ask in asks:
                ask.answer.set_exception(error)
            return
        for name in published:
            self._lent.pop(name, None)
        for ask in asks:
            ask.answer.set_result(self._answer(ask, published))

    def _add(self, build: Callable[[], Record | None]) -> None:
        if self._writer is None:
            self._writer = Writer(self._output, self._state, self._run)
        self._writer.add(build)

    def _acceptable(self, asks: Sequence[_Ask]) -> list[Commit]:
        """The commits whose rows are free, and not in another one of the same record."""
        accepted: list[Commit] = []
        claimed: dict[int, set[int]] = {}
        for commit in (ask.commit for ask in asks):
            if commit is None or self._state.taken(commit.rows):
                continue
            rows = {number: indices.tolist() for number, indices in commit.rows.items()}
            if all(claimed.get(number, set()).isdisjoint(rows[number]) for number in rows):
                accepted.append(commit)
                for number in rows:
                    claimed.setdefault(number, set()).update(rows[number])
        return accepted

    def _answer(self, ask: _Ask, published: Mapping[str, Group]) -> CommitReply:
        """After the record is written: a commit that is not in it has met others' rows."""
        if ask.commit is not None and ask.commit.token not in self._state.tokens:
            return CommitReply(taken=self._state.taken(ask.commit.rows))
        own = [published[name] for name in ask.published if name in published]
        tokens = {part.token for group in own for part in group.parts}
        unneeded = tuple(token for token in tokens if token not in self._state.tokens)
        return CommitReply(groups=self._lend(), unneeded=unneeded)

    def _lend(self) -> tuple[Group, ...]:
        """Groups for a task to publish: no other has them, or has had them for too long."""
        now, groups = self._clock(), list[Group]()
        for name, group in self._state.groups.items():
            if len(groups) == _GROUPS:
                break
            if now - self._lent.get(name, -math.inf) > _LOAN_S:
                self._lent[name] = now
                groups.append(group)
        return tuple(groups)
