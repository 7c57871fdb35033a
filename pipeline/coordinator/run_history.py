"""Reads the past runs of an output from its log, and from the note that each run leaves at its end.

A killed run leaves no note; its rows count in later runs.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.log import log_of
from mediamill.pipeline.ledger.state import LedgerState
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_READERS = 16


def past_runs(output: str, steps: Sequence[str] = ()) -> list[dict[str, object]]:
    """Returns the runs of an output, oldest first: the summary of each, and these keys:

    run: its id. started: UTC, ISO 8601. end: "finished", "finished with errors", why it stopped,
    "at work", or None for one that was killed. step: the run's folder, where `steps` are read.

    steps: folders in the output that are read if it has no log of its own.
    Raises JobError when there is no log, or a damaged one.
    """
    place = storage.resolve(output)
    state = ledger.load(place)
    if state.header is not None:
        return _runs(place, state)
    logs = [(step, place / step, ledger.load(place / step)) for step in steps]
    runs = [
        {**run, "step": step}
        for step, folder, state in logs
        if state.header is not None
        for run in _runs(folder, state)
    ]
    if not runs:
        raise JobError(
            f"{storage.redact(place.url)}: found no log of Mediamill, expected an output"
        )
    return sorted(runs, key=lambda run: str(run["started"]))


def _runs(place: Place, state: LedgerState) -> list[dict[str, object]]:
    log, notes = log_of(place), place / ledger.HIDDEN / "runs"
    note_names, working = set(storage.list_files(notes)), lease.holder(place)

    def record(number: int) -> Any:
        return json.loads(storage.read(log / f"{number:012}.json"))

    def with_note(start: Any) -> dict[str, object]:
        run = {"run": start["run"], "started": start.get("at")}
        name = f"{start['run']}.json"
        if name not in note_names:
            return {**run, "end": "at work" if start["run"] == working else None}
        note = json.loads(storage.read(notes / name))
        new_errors = note.get("new_error_rows", note.get("error_rows"))
        errors = "finished with errors" if new_errors else "finished"
        return {**run, **note, "end": note.get("stopped", errors)}

    with ThreadPoolExecutor(_READERS) as readers:
        records = readers.map(record, state.fences)
        starts = [each for each in records if each["kind"] in ("start", "reshard")]
        return list(readers.map(with_note, starts))
