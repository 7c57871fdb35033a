"""Reads the past runs of an output from its log, and from the note that each run leaves at its end.

A killed run leaves no note; its rows count in later runs.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
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

    run: its id. started: UTC, ISO 8601. end: "finished", "finished with errors", "nothing to do",
    "compacted ...", "stopped: ..." on request, "failed: ...", "at work", or None for one that was
    killed. step: the run's folder, where `steps` are read.

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
        return {**run, **note, "end": _end_of(note)}

    def without_start(name: str) -> dict[str, object] | None:
        """A run that had nothing to do is in no record of the log."""
        note = json.loads(storage.read(notes / name))
        if not note.get("idle"):
            return None
        run = name.removesuffix(".json")
        return {"run": run, "started": _start_of(run), **note, "end": _end_of(note)}

    with ThreadPoolExecutor(_READERS) as readers:
        records = readers.map(record, state.fences)
        starts = [each for each in records if each["kind"] in ("start", "reshard")]
        runs = list(readers.map(with_note, starts))
        idle = note_names - {f"{run['run']}.json" for run in runs}
        runs += [run for run in readers.map(without_start, sorted(idle)) if run is not None]
    return sorted(runs, key=lambda run: str(run["started"]))


def _end_of(note: Mapping[str, object]) -> str:
    if "compacted" in note:
        return f"compacted {note['compacted']}"
    stopped = note.get("stopped")
    if str(stopped).startswith("compacted "):  # by an older version
        return str(stopped)
    if stopped is not None:
        # Notes of older versions do not say whether somebody asked for it.
        return f"{'stopped' if note.get('on_request', True) else 'failed'}: {stopped}"
    if note.get("idle"):
        return "nothing to do"
    new_errors = note.get("new_error_rows", note.get("error_rows"))
    return "finished with errors" if new_errors else "finished"


def _start_of(run: str) -> str | None:
    """Returns the time in the id of a run."""
    try:
        return datetime.strptime(run[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).isoformat()
    except ValueError:
        return None
