"""The owner of an output's truth: which rows are finished, durable whatever is killed and when.

The truth is a log of numbered objects in the output's hidden folder. A record is added by putting
an object that must not exist yet, so all writers, of all runs and machines, agree on one order. A
run begins by adding a `start` record: from then on an older run that still lives finds its next
number taken, and stops. Within a run one actor adds the `commit` records, those that come together
in one.

This file knows rows and tokens; which files hold the rows, and how those become visible, does not
concern it.
"""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np

from pipeline import storage
from pipeline.ledger_state import Counts, KnownFile, LedgerState, Record, Rows, text_of
from pipeline.storage import Place
from schemas.errors import JobError

HIDDEN = "_mediamill"  # readers of datasets skip names that begin with "_" or "."
_VERSION = 1
_READERS = 16  # threads that read the log at the start


class TakenOverError(RuntimeError):
    """A newer run has started on this output; this one may not commit any more."""


@dataclass(frozen=True)
class Commit:
    """Rows that one write task has staged, to be finished all at once.

    token: names this try of this task. rows: what is in the staged files. counts: theirs.
    """

    token: str
    rows: Rows
    counts: Counts


def load(output: Place) -> LedgerState:
    """What the output's log says; an empty state when there is none.

    Raises JobError when the log is damaged.
    """
    state = LedgerState()
    catch_up(output, state)
    return state


def catch_up(output: Place, state: LedgerState) -> None:
    """Applies the records that came after `state`. Raises JobError when the log is damaged."""
    log = _log(output)
    names = [name for name in storage.files_below(log) if name.endswith(".json")]
    fresh = [name for name in names if int(name.removesuffix(".json")) > state.sequence]
    with ThreadPoolExecutor(_READERS) as readers:
        contents = readers.map(lambda name: storage.read(log / name), fresh)
        for name, data in zip(fresh, contents, strict=True):
            try:
                if int(name.removesuffix(".json")) != state.sequence + 1:
                    raise ValueError(f"record {state.sequence + 1} is missing")
                state.apply(json.loads(data))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise JobError(
                    f"{(log / name).url}: the output's log is damaged ({error}); "
                    "expected what Mediamill wrote: write to a new output folder"
                ) from error


def begin(
    output: Place, state: LedgerState, run: str, header: Record, files: Sequence[KnownFile]
) -> None:
    """Makes `run` the only one that can commit, and tells the log of new and grown manifest files.

    header: what the output is bound to; written when it is new, else the caller has compared it.
    Raises TakenOverError when another run starts at the same moment.
    """
    if state.header is None:
        _append(output, state, {"kind": "open", "version": _VERSION, **header})
    numbers = {file.name: number for number, file in enumerate(state.files)}
    entries = []
    for file in files:
        number = numbers.setdefault(file.name, len(numbers))
        if number >= len(state.files) or state.files[number] != file:
            entries.append({"number": number, **asdict(file)})
    _append(output, state, {"kind": "start", "run": run, "files": entries})


def end(output: Place, state: LedgerState, summary: Record) -> None:
    """Notes what the run did, after its actor is done."""
    catch_up(output, state)
    try:
        _append(output, state, {"kind": "end", "run": state.run, "summary": summary})
    except TakenOverError:
        return  # the next run has begun already, and the note changes nothing for it


class Ledger:
    """The actor: answers the write tasks of one run, after making the answer durable."""

    def __init__(self, output_url: str, run: str) -> None:
        self._output = storage.resolve(output_url)
        self._state = load(self._output)  # also after a restart of the actor
        self._run = run
        self._waiting: list[_Waiting] = []
        self._writing = asyncio.Lock()

    async def taken(self, rows: Rows) -> Rows:
        """Those of the rows that are finished already."""
        return self._state.taken(rows)

    async def commit(self, commit: Commit) -> Rows:
        """Finishes all rows and returns {}, or finishes none and returns those that were taken.

        The same commit may come again, from a task whose first answer was lost.
        Raises TakenOverError when a newer run owns the output.
        """
        answer: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        self._waiting.append((commit, answer))
        while not answer.done():
            # Whoever gets the lock writes for all who wait; the others find their answer there.
            async with self._writing:
                if not answer.done():
                    await self._write()
        return answer.result()

    async def counts(self) -> tuple[Counts, Counts]:
        """Of the whole output, and of this run."""
        return self._state.counts, self._state.run_counts

    async def _write(self) -> None:
        group, self._waiting = self._waiting, []
        try:
            if self._state.run != self._run:
                raise _taken_over(self._output, self._state)
            accepted = self._sort_out(group)
            if accepted:
                record = _record(self._run, [commit for commit, _ in accepted])
                await asyncio.to_thread(_append, self._output, self._state, record)
        except Exception as error:  # noqa: BLE001 - the waiting tasks are who must know
            for _, answer in group:
                if not answer.done():
                    answer.set_exception(error)
            self._waiting = [one for one in self._waiting if not one[1].done()]
            return
        for _, answer in accepted:
            answer.set_result({})

    def _sort_out(self, group: Sequence["_Waiting"]) -> Sequence["_Waiting"]:
        """Answers those that cannot be written, puts off those that overlap, returns the others."""
        accepted: list[_Waiting] = []
        for commit, answer in group:
            if commit.token in self._state.tokens:
                answer.set_result({})
            elif taken := self._state.taken(commit.rows):
                answer.set_result(taken)
            elif any(_overlap(commit.rows, other.rows) for other, _ in accepted):
                self._waiting.append((commit, answer))
            else:
                accepted.append((commit, answer))
        return accepted


_Waiting = tuple[Commit, asyncio.Future[Rows]]


def _overlap(left: Rows, right: Rows) -> bool:
    return any(np.isin(left[number], right[number]).any() for number in left.keys() & right.keys())


def _record(run: str, commits: Sequence[Commit]) -> Record:
    entries = [
        {
            "token": commit.token,
            "rows": {str(number): text_of(indices) for number, indices in commit.rows.items()},
            "counts": asdict(commit.counts),
        }
        for commit in commits
    ]
    return {"kind": "commit", "run": run, "commits": entries}


def _log(output: Place) -> Place:
    return output / HIDDEN / "log"


def _append(output: Place, state: LedgerState, record: Record) -> None:
    """Adds the next record and applies it. Raises TakenOverError when somebody else added it."""
    stamped = {**record, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    name = f"{state.sequence + 1:012}.json"
    if not storage.put_new(_log(output) / name, json.dumps(stamped).encode()):
        catch_up(output, state)
        raise _taken_over(output, state)
    state.apply(stamped)


def _taken_over(output: Place, state: LedgerState) -> TakenOverError:
    return TakenOverError(
        f"{output.url}: run {state.run} has begun on the same output, so this run stops; "
        "what it has finished is kept"
    )
