"""Compacts an output as a run of its own: with its lease, a fence in its log and a line of history.

No job can write meanwhile: one that is at work makes this refuse, and one that is cut off but not
dead finds its next record number taken.
"""

import json
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ledger import compaction, ledger, recovery
from mediamill.pipeline.ledger.inventory import record_of, take_inventory
from mediamill.pipeline.ledger.log import taken_over
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError


@dataclass(frozen=True)
class CompactSummary:
    """files_before, files_after: visible ones. skipped: folders with links or folders in them.

    atomic: whether readers saw each row at every moment; else, some were missing for moments.
    """

    files_before: int
    files_after: int
    rows: int
    rows_per_file: int
    seconds: float
    output: str
    skipped: tuple[str, ...] = ()
    atomic: bool = True


def compact(output: str, rows_per_file: int | None = None) -> CompactSummary:
    """Rewrites small files of an output to files of about `rows_per_file` rows.

    rows_per_file: default, that of the output's last run.
    A killed compaction goes on when it is called again, or when the job's next run begins.
    Raises JobError when there is no output, and RunError when a run is at work on it.
    """
    place = storage.resolve(output)
    shown = storage.redact(place.url)
    state = ledger.load(place)
    if state.header is None:
        steps = ledger.load(place / "windows").header is not None
        hint = f": give {shown}/windows" if steps else ""
        raise JobError(f"{shown}: found no log of Mediamill, expected an output{hint}")
    if place.path.rpartition("/")[2] in ("_split", "_videos"):
        raise JobError(f"{shown}: found a step of annotate, whose files later steps know by name")
    started = time.monotonic()
    run = f"compact-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    with lease.hold(place, run):
        ledger.catch_up(place, state)
        try:
            ledger.begin(place, state, run, {}, (), state.rows_per_file)
            if state.replacements:  # of a killed retry; they name files that would be gone
                recovery.recover(place, state)

            recovery.revoke_others(place, state, run)

            def check() -> None:
                ledger.catch_up(place, state)
                if state.run != run:
                    raise taken_over(place, state)

            size = rows_per_file or state.rows_per_file
            before, after, skipped, atomic = compaction.compact(place, size, check)
        except ledger.TakenOverError as error:
            raise RunError(str(error)) from error
        seconds = round(time.monotonic() - started, 3)
        summary = CompactSummary(
            before, after, state.counts.rows, size, seconds, shown, tuple(skipped), atomic
        )
        counts = state.counts
        note = {"rows": counts.rows, "ok": counts.ok, "errors": counts.errors, "seconds": seconds}
        note["compacted"] = f"{before} files to {after}"
        storage.put(place / ledger.HIDDEN / "runs" / f"{run}.json", json.dumps(note).encode())
        inventory = take_inventory(place, state)
        visible = None if inventory.differs or state.visible is None else record_of(inventory.files)
        ledger.end(place, state, {**asdict(summary), "compaction": True}, visible)
    return summary
