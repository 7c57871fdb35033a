"""Turns the log of an output, and the notes that runs have left beside it, into their history.

A run that was killed has begun and left no note; what it finished counts in later ones.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mediamill.pipeline.coordinator.lease import at_work
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.log import log_of
from mediamill.pipeline.ledger.state import LedgerState
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_READERS = 16


def past_runs(output: str, steps: Sequence[str] = ()) -> list[dict[str, object]]:
    """The runs of an output, oldest first: what the summary of each says, and

    run: its name. started: UTC, ISO 8601. end: "finished", "finished with errors", why it stopped,
    "at work", or None for one that was killed.
    steps: folders in an output that may have logs of their own, where it has none; a run has its
    folder as `step` then.
    Raises JobError when there is no log, or a damaged one.
    """
    place = storage.resolve(output)
    state = ledger.load(place)
    if state.header is not None:
        return _runs(place, state)
    found = [(step, place / step, ledger.load(place / step)) for step in steps]
    runs = [
        {**run, "step": step}
        for step, where, state in found
        if state.header is not None
        for run in _runs(where, state)
    ]
    if not runs:
        raise JobError(
            f"{storage.redact(place.url)}: found no log of Mediamill, expected an output"
        )
    return sorted(runs, key=lambda run: str(run["started"]))


def _runs(place: Place, state: LedgerState) -> list[dict[str, object]]:
    log, notes = log_of(place), place / ledger.HIDDEN / "runs"
    kept, working = set(storage.list_files(notes)), at_work(place)

    def record(number: int) -> dict[str, object]:
        found: dict[str, object] = json.loads(storage.read(log / f"{number:012}.json"))
        return found

    def told(begun: dict[str, object]) -> dict[str, object]:
        run = {"run": begun["run"], "started": begun.get("at")}
        name = f"{begun['run']}.json"
        if name not in kept:
            return {**run, "end": "at work" if begun["run"] == working else None}
        note = json.loads(storage.read(notes / name))
        errors = "finished with errors" if note.get("error_rows") else "finished"
        return {**run, **note, "end": note.get("stopped", errors)}

    with ThreadPoolExecutor(_READERS) as readers:
        begun = [one for one in readers.map(record, state.fences) if one["kind"] == "start"]
        return list(readers.map(told, begun))
