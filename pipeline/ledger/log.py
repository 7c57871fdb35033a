"""The log of an output: numbered objects in its hidden folder, whose order all writers agree on.

A record is added by putting an object that must not exist yet. Each writer begins with a record of
its own, a fence: whoever wrote before finds the next number taken, for ever, and stops. Now and
then a writer adds a snapshot, which stands for the records up to it. What a record says of rows is
ledger_state.py's.
"""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from mediamill.pipeline.ledger import snapshot as snapshots
from mediamill.pipeline.ledger.state import LedgerState, Record
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

HIDDEN = "_mediamill"  # readers of datasets skip names that begin with "_" or "."
_RECORD = ".json"
_READERS = 16  # threads that read the log
_TRIES = 5  # to read a log that others write


class TakenOverError(RuntimeError):
    """Another process writes to this output now; this one may not any more."""


def catch_up(output: Place, state: LedgerState) -> None:
    """Applies what came after `state`. Raises JobError when the log is damaged."""
    for left in reversed(range(_TRIES)):
        try:
            _catch_up(log_of(output), state)
            return
        except (FileNotFoundError, _MissingError) as error:
            # Its writer may have removed records meanwhile, since a snapshot has them.
            if not left:
                raise _damaged(log_of(output), error) from error


def _catch_up(log: Place, state: LedgerState) -> None:
    names = _numbered(log)
    for name in snapshots.newest_first(names):
        if _number(name) <= state.sequence:
            break
        try:
            state.become(snapshots.parse(storage.read(log / name)))
        except ValueError:
            continue  # the one before it is kept for this
        state.snapshot = state.sequence
        break
    fresh = [name for name in names if name.endswith(_RECORD) and _number(name) > state.sequence]
    with ThreadPoolExecutor(_READERS) as readers:
        contents = readers.map(lambda name: storage.read(log / name), fresh)
        for name, data in zip(fresh, contents, strict=True):
            if _number(name) != state.sequence + 1:
                raise _MissingError(f"record {state.sequence + 1} is missing")
            try:
                state.apply(json.loads(data))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise _damaged(log / name, error) from error


class _MissingError(Exception):
    """A record is not there, though later ones are."""


def _is_past(log: Place, number: int) -> bool:
    """Whether a snapshot has this record already."""
    newest = snapshots.newest_first(_numbered(log))
    return bool(newest) and _number(newest[0]) >= number


def _damaged(place: Place, error: Exception) -> JobError:
    return JobError(
        f"{storage.redact(place.url)}: the output's log is damaged ({error}); expected what this "
        "version of Mediamill wrote: write to a new output folder"
    )


def _numbered(log: Place) -> list[str]:
    """The log's records and snapshots, in order; not what a killed writer has left unnamed."""
    suffixes = (_RECORD, snapshots.SUFFIX)
    return [name for name in storage.list_files(log) if name.endswith(suffixes)]


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def append(output: Place, state: LedgerState, record: Record) -> bool:
    """Adds the next record and applies it. False when another writer had the number, or had it and
    has removed its record since: `state` then knows what was written.
    """
    stamped = {**record, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    name = f"{state.sequence + 1:012}{_RECORD}"
    try:
        added = storage.put_if_absent(log_of(output) / name, json.dumps(stamped).encode())
        # A fence may come from somebody who has not looked at the log for long; what a writer adds
        # after its fence cannot lie in the past, as no number after a fence is ever free again.
        if added and record["kind"] != "commit":
            added = not _is_past(log_of(output), state.sequence + 1)
    except FileNotFoundError:  # it was there, and removed before it could be looked at
        added = False
    if not added:
        catch_up(output, state)
        return False
    state.apply(stamped)
    return True


class Writer:
    """The one process that may add records of a run, from its fence to the next one's."""

    def __init__(self, output: Place, state: LedgerState, run: str, closing: bool = False) -> None:
        """Takes over from the run's writer; from a closing one only another closing one can.

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
        """Adds the record that `build` makes of the state as it is then; nothing for None.

        Raises TakenOverError when this is the writer no longer.
        """
        while True:
            if (self._state.run, self._state.owner) != (self._run, self._name):
                raise taken_over(self._output, self._state)
            record = build()
            if record is None:
                return
            if append(self._output, self._state, record):
                break
            # The number may have been taken by this writer: a storage can fail after it has stored.
        if snapshots.due(self._state, self._state.sequence - self._state.snapshot):
            compact(self._output, self._state)


def compact(output: Place, state: LedgerState) -> None:
    """Adds a snapshot of `state`, and removes the objects of the log that it makes superfluous."""
    log = log_of(output)
    storage.put(log / snapshots.file_name(state.sequence), snapshots.dump(state))
    state.snapshot = state.sequence
    # Only of what this state knows: a writer that was replaced does not know the newer fences.
    names = [name for name in _numbered(log) if _number(name) <= state.sequence]
    gone = snapshots.superfluous(names, state.fences)
    with ThreadPoolExecutor(_READERS) as removers:
        list(removers.map(lambda name: storage.remove(log / name), gone))


def taken_over(output: Place, state: LedgerState) -> TakenOverError:
    """What to raise when `state` says that somebody else is the writer."""
    return TakenOverError(
        f"{storage.redact(output.url)}: run {state.run} has begun on the same output, so this run "
        "stops; what it has finished is kept"
    )


def log_of(output: Place) -> Place:
    """The hidden folder of the log."""
    return output / HIDDEN / "log"
