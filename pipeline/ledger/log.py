"""The commit log of an output: numbered objects in its hidden folder.

A record is added by putting an object that must not exist yet. Each writer begins with a fence, a
record of its own: the previous writer then finds its next number taken, and stops. A writer
sometimes adds a snapshot, which replaces the records up to it. state.py applies the records.
"""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from mediamill.pipeline.ledger import snapshot as snapshots
from mediamill.pipeline.ledger.snapshot import number_of
from mediamill.pipeline.ledger.state import LedgerState, Record
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

HIDDEN = "_mediamill"  # readers of datasets skip names that begin with "_" or "."
_RECORD = ".json"
_READERS = 16  # threads that read the log
_TRIES = 5  # to read a log that another process compacts meanwhile


class TakenOverError(RuntimeError):
    """Another process has become the writer of this output; this one may not commit."""


def catch_up(output: Place, state: LedgerState) -> None:
    """Applies the records after `state`. Raises JobError when the log is damaged."""
    for tries_left in reversed(range(_TRIES)):
        try:
            _catch_up(log_of(output), state)
            return
        except (FileNotFoundError, _MissingError) as error:
            # The writer may have removed records meanwhile, after it added a snapshot.
            if not tries_left:
                raise _damaged(log_of(output), error) from error


def _catch_up(log: Place, state: LedgerState) -> None:
    names = _numbered(log)
    for name in snapshots.newest_first(names):
        if number_of(name) <= state.sequence:
            break
        try:
            state.become(snapshots.parse(storage.read(log / name)))
        except ValueError:
            continue  # the previous snapshot is kept for this case
        state.snapshot = state.sequence
        break
    later = [name for name in names if number_of(name) > state.sequence]
    records = [name for name in later if name.endswith(_RECORD)]
    with ThreadPoolExecutor(_READERS) as readers:
        contents = readers.map(lambda name: storage.read(log / name), records)
        for name, data in zip(records, contents, strict=True):
            if number_of(name) != state.sequence + 1:
                raise _MissingError(f"record {state.sequence + 1} is missing")
            try:
                state.apply(json.loads(data))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise _damaged(log / name, error) from error


class _MissingError(Exception):
    """A record does not exist, though later ones do."""


def _is_past(log: Place, number: int) -> bool:
    """Returns whether a snapshot covers this record number."""
    return any(number_of(name) >= number for name in snapshots.newest_first(_numbered(log)))


def _damaged(place: Place, error: Exception) -> JobError:
    return JobError(
        f"{storage.redact(place.url)}: the output's log is damaged ({error}); expected what this "
        "version of Mediamill wrote: write to a new output folder"
    )


def _numbered(log: Place) -> list[str]:
    """Returns the log's records and snapshots, in order, without temporary files."""
    suffixes = (_RECORD, snapshots.SUFFIX)
    return [name for name in storage.list_files(log) if name.endswith(suffixes)]


def append(output: Place, state: LedgerState, record: Record) -> bool:
    """Adds the next record and applies it.

    Returns False when another writer has used the number, even if the record is removed by now;
    `state` is then brought up to date.
    """
    timed = {**record, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    name = f"{state.sequence + 1:012}{_RECORD}"
    try:
        added = storage.put_if_absent(log_of(output) / name, json.dumps(timed).encode())
        # A stale process may write a fence at a number that compaction has already removed. Commits
        # cannot: numbers after a fence are never free again.
        if added and record["kind"] != "commit":
            added = not _is_past(log_of(output), state.sequence + 1)
    except FileNotFoundError:  # the record existed, and was removed before it could be read
        added = False
    if not added:
        catch_up(output, state)
        return False
    state.apply(timed)
    return True


class Writer:
    """The one process that may add records of a run, until another one writes a fence."""

    def __init__(self, output: Place, state: LedgerState, run: str, closing: bool = False) -> None:
        """Takes over from the run's previous writer.

        closing: ends the run's commits; only another closing writer can take over then.
        Raises TakenOverError when another run has begun, or this one is closed.
        """
        self._output, self._state, self._run = output, state, run
        self._name = uuid.uuid4().hex
        fence = {"kind": "owner", "run": run, "owner": self._name, "closing": closing}
        while state.run == run and (closing or not state.closed):
            if append(output, state, fence):
                return
        raise taken_over(output, state)

    def add(self, build: Callable[[], Record | None]) -> None:
        """Adds the record that `build` makes from the current state, unless it returns None.

        Raises TakenOverError when this is no longer the writer.
        """
        while True:
            if (self._state.run, self._state.owner) != (self._run, self._name):
                raise taken_over(self._output, self._state)
            record = build()
            if record is None:
                return
            if append(self._output, self._state, record):
                break
            # This writer may have used the number: a put can fail after it has stored the object.
        if snapshots.due(self._state, self._state.sequence - self._state.snapshot):
            compact(self._output, self._state)


def compact(output: Place, state: LedgerState) -> None:
    """Compacts the log: adds a snapshot of `state`, and removes objects that it makes obsolete."""
    log = log_of(output)
    storage.put(log / snapshots.file_name(state.sequence), snapshots.dump(state))
    state.snapshot = state.sequence
    # Only up to this state: a writer that was replaced does not know the newer fences.
    names = [name for name in _numbered(log) if number_of(name) <= state.sequence]
    obsolete = snapshots.obsolete(names, state.fences)
    with ThreadPoolExecutor(_READERS) as removers:
        list(removers.map(lambda name: storage.remove(log / name), obsolete))


def log_end(output: Place) -> int:
    """Returns the number of the log's newest record."""
    return max(map(number_of, _numbered(log_of(output))), default=0)


def taken_over(output: Place, state: LedgerState) -> TakenOverError:
    """Returns the error that says that the run of `state` has replaced this one."""
    return TakenOverError(
        f"{storage.redact(output.url)}: run {state.run} has begun on the same output, so this run "
        "stops; finished rows are kept"
    )


def log_of(output: Place) -> Place:
    """Returns the hidden folder of the log."""
    return output / HIDDEN / "log"
