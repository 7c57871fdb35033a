"""The commit protocol of an output: records durably which rows are finished, despite any kill.

A run begins by adding a `start` record to the output's log. An older run that is still alive then
finds its next record number taken, and stops. Within a run one actor adds the `commit` records;
commits that arrive together share one record. A record marks rows as finished, and groups finished
rows into the next visible file as soon as a folder has enough of them (see publish.py).
"""

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice

from mediamill.pipeline.ledger.log import HIDDEN as HIDDEN
from mediamill.pipeline.ledger.log import TakenOverError as TakenOverError
from mediamill.pipeline.ledger.log import Writer, append, taken_over
from mediamill.pipeline.ledger.log import catch_up as catch_up
from mediamill.pipeline.ledger.state import (
    VERSION,
    Counts,
    Group,
    KnownFile,
    LedgerState,
    Part,
    Record,
    Resharding,
    Rows,
    text_of,
    text_of_bitmap,
)
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

_MAX_GROUPS = 4  # that a write task gets at once, so that several tasks share the work
_ASSIGNMENT_S = 120.0  # after which a task that has not published its groups counts as dead


@dataclass(frozen=True)
class Commit:
    """Rows that one write task has staged, to be finished all at once or not at all.

    token: unique to this attempt of this task.
    rows, counts: of the staged rows.
    parts: the same rows by folder of the result; a folder may come more than once.
    texts: how many of their answers have each text, and an example, by `text_key`; not logged.
    """

    token: str
    rows: Rows
    counts: Counts
    parts: tuple[tuple[str, Part], ...] = ()
    texts: tuple[Mapping[str, int], Mapping[str, str]] = ({}, {})


@dataclass(frozen=True)
class CommitReply:
    """The ledger's reply to a write task.

    finished: rows of the commit that were finished before; if there are any, nothing was committed.
    groups: files that the task should make visible and report.
    unneeded: tokens of staged objects that can be removed.
    """

    finished: Rows = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    unneeded: tuple[str, ...] = ()


def load(output: Place) -> LedgerState:
    """Returns the state of the output's log, empty without a log. Raises JobError if damaged."""
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
    resharding: Resharding | None = None,
) -> None:
    """Makes `run` the only one that can commit, and logs which manifest files are new or changed.

    header: what the output is bound to. It is written to a new output only; for an older one the
    caller compares it with `state.header`.
    Raises TakenOverError when another run starts at the same moment, or has finished rows since
    the resharding was found.
    """
    previous, resharding = state.run, resharding or Resharding()
    if state.header is None and not append(
        output, state, {"kind": "open", "version": VERSION, **header}
    ):
        raise taken_over(output, state)
    while state.run == previous:  # an older run may commit in between
        if resharding.retired and state.sequence != resharding.sequence:
            raise TakenOverError(
                f"{storage.redact(output.url)}: run {state.run} has finished rows while this one "
                "compared the manifest's files with those of earlier runs, so this run stops: run "
                "the same command again"
            )
        if append(output, state, _start_record(state, run, files, rows_per_file, resharding)):
            return
    raise taken_over(output, state)


def _start_record(
    state: LedgerState,
    run: str,
    files: Sequence[KnownFile],
    rows_per_file: int,
    resharding: Resharding,
) -> Record:
    """Returns the record that begins a run.

    One record retires files and marks their rows elsewhere, so that no kill comes in between. Its
    kind is another one, since older versions of Mediamill would misread it.
    """
    gone = {*resharding.retired, *resharding.renamed.values()}
    numbers = {
        file.name: number
        for number, file in enumerate(state.files)
        if file.name and number not in gone
    }
    numbers |= resharding.renamed
    total = len(state.files)
    for file in files:
        if file.name not in numbers:
            numbers[file.name] = total
            total += 1
    known = set(state.files)
    entries = [
        {"number": numbers[file.name], **asdict(file)} for file in files if file not in known
    ]
    start = {"run": run, "rows_per_file": rows_per_file, "files": entries}
    if not resharding.retired:
        return {"kind": "start", **start}
    finished = {
        str(numbers[name]): text_of_bitmap(bitmap) for name, bitmap in resharding.finished.items()
    }
    retired = sorted(resharding.retired)
    return {"kind": "reshard", **start, "retired": retired, "finished": finished}


def end(output: Place, state: LedgerState, summary: Record) -> bool:
    """Logs the run's summary; from then on none of its processes can commit.

    Returns False when another run has begun; nothing is logged then.
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
    """Returns the next record: it finishes the rows of commits, and drops published groups.

    In the folders of the commits, rows that fill whole files become groups; with `everything`, all
    waiting rows of all folders do.
    """
    added: Counter[str] = Counter(state.waiting if everything else ())
    for commit in commits:
        for folder, part in commit.parts:
            added[folder] += part.rows
    groups: list[tuple[str, int, str]] = []
    for folder, rows in added.items():
        left = rows if everything else rows + state.waiting.get(folder, 0)
        while left >= state.rows_per_file or (everything and left):
            # Unique, since no other record has this number.
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
class _Call:
    """A pending call of a write task: its commit, or the groups that it has published."""

    commit: Commit | None = None
    published: tuple[str, ...] = ()
    reply: asyncio.Future[CommitReply] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Ledger:
    """Serves the write tasks of one run. A record is durable before its calls get a reply.

    Only one process of a run can commit: if the first one was cut off but is not dead, it is the
    one that wrote its fence last.
    """

    def __init__(
        self, output_url: str, run: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.output = storage.resolve(output_url)
        self.state = load(self.output)
        self._run = run
        self._clock = clock
        self._writer: Writer | None = None
        self._calls: list[_Call] = []
        self._writing = asyncio.Lock()
        self._assigned: dict[str, float] = {}  # when a group was given to a task

    async def finished(self, rows: Rows) -> Rows:
        """Returns those of the rows that are finished already.

        Raises TakenOverError when a newer run owns the output: it may have other files.
        """
        if self.state.run != self._run:
            raise taken_over(self.output, self.state)
        return self.state.finished(rows)

    async def commit(self, commit: Commit) -> CommitReply:
        """Finishes all rows, or none if some of them are finished already.

        The same commit may come again, from a task that did not get the first reply.
        Raises TakenOverError when a newer run owns the output.
        """
        return await self._call(_Call(commit))

    async def published(self, names: Sequence[str]) -> CommitReply:
        """Logs that the files of these groups are visible, and gives the task more groups.

        Raises TakenOverError when a newer run owns the output.
        """
        return await self._call(_Call(published=tuple(names)))

    async def counts(self) -> tuple[Counts, Counts]:
        """Returns the counts of the whole output, and those of this run."""
        return self.state.counts, self.state.run_counts

    async def _call(self, call: _Call) -> CommitReply:
        self._calls.append(call)
        while not call.reply.done():
            # Group commit: the call that gets the lock writes one record for all pending calls.
            async with self._writing:
                if not call.reply.done():
                    await self._write()
        return call.reply.result()

    async def _write(self) -> None:
        calls, self._calls = self._calls, []
        published: dict[str, Group] = {}

        def build() -> Record | None:
            nonlocal published
            names = [name for call in calls for name in call.published]
            published = {n: self.state.groups[n] for n in names if n in self.state.groups}
            accepted = self._acceptable(calls)
            return record_of(self.state, accepted, published) if accepted or published else None

        try:
            await asyncio.to_thread(self._add, build)
        except Exception as error:  # noqa: BLE001 - it is raised in the waiting calls
            for call in calls:
                call.reply.set_exception(error)
            return
        for name in published:
            self._assigned.pop(name, None)
        for call in calls:
            call.reply.set_result(self._reply(call, published))

    def _add(self, build: Callable[[], Record | None]) -> None:
        if self._writer is None:
            self._writer = Writer(self.output, self.state, self._run)
        self._writer.add(build)

    def _acceptable(self, calls: Sequence[_Call]) -> list[Commit]:
        """Returns the commits whose rows are neither finished nor in an earlier commit of these."""
        accepted: list[Commit] = []
        claimed: defaultdict[int, set[int]] = defaultdict(set)
        for commit in (call.commit for call in calls):
            if commit is None or self.state.finished(commit.rows):
                continue
            rows = [(number, indices.tolist()) for number, indices in commit.rows.items()]
            if all(claimed[number].isdisjoint(indices) for number, indices in rows):
                accepted.append(commit)
                for number, indices in rows:
                    claimed[number].update(indices)
        return accepted

    def _reply(self, call: _Call, published: Mapping[str, Group]) -> CommitReply:
        """Returns the reply to a call after its record. Commits that it lacks were rejected."""
        if call.commit is not None and call.commit.token not in self.state.tokens:
            return CommitReply(finished=self.state.finished(call.commit.rows))
        groups = [published[name] for name in call.published if name in published]
        tokens = {part.token for group in groups for part in group.parts}
        unneeded = tuple(token for token in tokens if token not in self.state.tokens)
        return CommitReply(groups=self._assign(), unneeded=unneeded)

    def _assign(self) -> tuple[Group, ...]:
        """Returns groups for a task to publish that no live task has."""
        now = self._clock()
        unassigned = (
            group
            for name, group in self.state.groups.items()
            if now - self._assigned.get(name, -math.inf) > _ASSIGNMENT_S
        )
        groups = tuple(islice(unassigned, _MAX_GROUPS))
        self._assigned |= {group.name: now for group in groups}
        return groups
