"""Checks an output without changing it: its files against its log, and with `deep` its rows."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from mediamill.pipeline.ledger import ledger, recovery
from mediamill.pipeline.ledger.inventory import Inventory, count, take_inventory
from mediamill.pipeline.ledger.state import LedgerState
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.retry.job_note import read_job
from mediamill.pipeline.retry.lost_rows import LostRows, find_lost
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_READERS = 8
_TRIES = 3  # while a run publishes files


@dataclass(frozen=True)
class Check:
    """What an output has. rows: finished ones by its log. files, bytes: visible ones.

    hidden_rows: finished rows that are not in a visible file yet.
    problems: sentences, none if all is as it should be. notes: sentences without a difference.
    """

    output: str
    rows: int
    errors: dict[str, int]
    files: int
    bytes: int
    hidden_rows: int
    inventory: Inventory
    deep: bool
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    broken: tuple[str, ...] = field(default_factory=tuple)

    @property
    def exit_code(self) -> int:
        """0 if all is as it should be, else 3."""
        return 3 if self.problems else 0


def check_output(output: str, deep: bool = False, steps: Sequence[str] = ()) -> list[Check]:
    """Checks an output, or each of the `steps` in it that has a log.

    Raises JobError when there is no log, or a damaged one.
    """
    place = storage.resolve(output)
    state = ledger.load(place)
    if state.header is not None:
        return [_check(place, state, deep)]
    folders = [(place / step, ledger.load(place / step)) for step in steps]
    checks = [_check(step, state, deep) for step, state in folders if state.header is not None]
    if not checks:
        shown = storage.redact(place.url)
        raise JobError(f"{shown}: found no log of Mediamill, expected an output")
    return checks


def _check(output: Place, state: LedgerState, deep: bool) -> Check:
    inventory = take_inventory(output, state)
    for _ in range(_TRIES):
        if not inventory.differs:
            break
        sequence = state.sequence
        ledger.catch_up(output, state)
        if state.sequence == sequence:
            break  # no run works on the output
        inventory = take_inventory(output, state)
    problems, notes = inventory.sentences(), []
    if inventory.missing_rows:
        again = "the next run of the job does them again"
        problems.append(f"{count(inventory.missing_rows, 'finished row')} in no file: {again}")
    success = storage.exists(output / recovery.SUCCESS)
    if success and (inventory.gone or inventory.missing_rows):
        problems.append("_SUCCESS says that all rows are there; the next run removes it")
    if state.visible is None:
        notes.append("an older version of Mediamill made it: only row counts are known")
    if state.hidden_rows or state.replacements:
        notes.append("a run was killed or is at work: the next one makes the other rows visible")
    broken: tuple[str, ...] = ()
    if deep:
        broken = _unreadable(output, inventory)
        problems += [f"{name} cannot be read" for name in broken]
        files = {name: file for name, file in inventory.files.items() if name not in broken}
        lost = _rows(output, state, files)
        if lost is None:
            notes.append("its job is not known, so ids are not compared with the manifest")
        else:
            problems += _row_problems(lost, inventory)
    return Check(
        storage.redact(output.url),
        state.counts.rows,
        dict(state.counts.errors),
        len(inventory.files),
        sum(file.bytes for file in inventory.files.values()),
        state.hidden_rows,
        inventory,
        deep,
        tuple(problems),
        tuple(notes),
        broken,
    )


def _unreadable(output: Place, found: Inventory) -> tuple[str, ...]:
    """Reads every page of every file. Returns the names of those that cannot be read."""

    def is_broken(name: str) -> bool:
        place = output / name
        try:
            with (
                place.fs.open(place.path, "rb") as opened,
                pq.ParquetFile(opened, page_checksum_verification=True) as parquet,
            ):
                rows = sum(batch.num_rows for batch in parquet.iter_batches(1024))
                return bool(rows != parquet.metadata.num_rows)
        except (OSError, ValueError):  # pyarrow's errors are both
            return True

    names = list(found.files)
    with ThreadPoolExecutor(_READERS) as threads:
        flags = threads.map(is_broken, names)
        return tuple(name for name, broken in zip(names, flags, strict=True) if broken)


def _rows(output: Place, state: LedgerState, files: Any) -> LostRows | None:
    """Compares the ids with the manifest; None if it is not known where that is."""
    note = read_job(output)
    if note is None or "manifest" in note.redacted:
        return None
    manifest = open_manifest(
        note.job["manifest"], state.files, state.header, note.job.get("media_column")
    )
    return find_lost(output, state, manifest, files)


def _row_problems(lost: LostRows, found: Inventory) -> list[str]:
    texts = []
    if lost.ids != lost.distinct:
        texts.append(f"{count(lost.ids - lost.distinct, 'row')} twice in the files")
    if lost.rows and not found.missing_rows:
        texts.append(f"{count(lost.rows, 'finished row')} in no file")
    if lost.unknown:
        texts.append(f"{count(lost.unknown, 'row')} in the files that the log does not have")
    return texts
