"""Compares a manifest's files with those that the ledger knows, and finds rows that are in others.

A file that has not changed, or has only new rows at its end, keeps its number and its bits; so does
a renamed one, known by the digest of its ids. All else is a resharding: the ledger's file is
retired, and if it had finished rows, their ids are read from the output and looked for in the
manifest's new rows.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ledger.finished_ids import read_finished_ids
from mediamill.pipeline.ledger.log import HIDDEN
from mediamill.pipeline.ledger.state import (
    Bitmap,
    KnownFile,
    LedgerState,
    Resharding,
    count_bits,
)
from mediamill.pipeline.manifest import unique_ids
from mediamill.pipeline.manifest.finished_rows import Tail, find_finished, find_missing
from mediamill.pipeline.manifest.manifest import Manifest
from mediamill.pipeline.manifest.unique_ids import NewIds, RewrittenError
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_SHOWN_IDS, _SHOWN_LENGTH = 5, 100
_ADVICE = "or write to a new output folder"


@dataclass(frozen=True)
class CheckedFiles:
    """The manifest's files as the ledger will store them, and what has to be stored with them.

    notes: sentences for the user.
    """

    files: tuple[KnownFile, ...]
    new_ids: NewIds
    resharding: Resharding
    notes: tuple[str, ...] = ()


def check_files(manifest: Manifest, state: LedgerState, output: Place) -> CheckedFiles:
    """Checks the ids of a manifest, and finds its finished rows, whatever files they are in.

    state: of the output's ledger.
    Raises JobError if an id is null or occurs twice, or if a finished row is no longer there.
    """
    rewritten: set[str] = set()
    while True:
        numbers = {
            file.name: number
            for number, file in enumerate(state.files)
            if file.name and file.name not in rewritten
        }
        kept = {file.name: numbers[file.name] for file in manifest.files if file.name in numbers}
        lost = {number for number, file in enumerate(state.files) if file.rows}
        lost -= set(kept.values())
        current, renamed = _find_renamed(manifest, state.files, lost, kept)
        kept |= renamed
        known = [replace(state.files[number], name=name) for name, number in kept.items()]
        try:
            files, new_ids = unique_ids.check_ids(current, known, output / HIDDEN / "ids")
            break
        except RewrittenError as error:
            rewritten |= error.names  # their rows are new ones, of which some may be finished
    retired = frozenset(lost - set(renamed.values()))
    resharding = Resharding(state.sequence, renamed, retired)
    starts = {name: state.files[number].rows for name, number in kept.items()}
    tails = [Tail(file, starts.get(file.name, 0)) for file in manifest.files]
    tails = [tail for tail in tails if tail.rows]
    moved = sum(count_bits(state.done[number]) for number in retired)
    if moved:
        finished = _find_finished(manifest, state, output, tails, moved)
        resharding = replace(resharding, finished=finished)
    unfinished = sum(state.files[number].rows for number in retired) - moved
    if (removed := unfinished - (sum(tail.rows for tail in tails) - moved)) > 0:
        note = (
            f"{storage.redact(manifest.url)}: at least {removed} rows that earlier runs had not "
            "finished are no longer in the manifest: they get no result"
        )
        return CheckedFiles(files, new_ids, resharding, (note,))
    return CheckedFiles(files, new_ids, resharding)


def _find_renamed(
    manifest: Manifest, known: Sequence[KnownFile], lost: Collection[int], kept: Collection[str]
) -> tuple[Manifest, dict[str, int]]:
    """Returns the numbers of the lost files that have another name now, and the manifest with the
    digests of these.
    """
    by_content = {(known[number].rows, known[number].digest): number for number in lost}
    sizes = {rows for rows, _ in by_content}
    files, renamed = [], {}
    for file in manifest.files:
        if file.name not in kept and file.rows in sizes:
            digest = unique_ids.ids_digest(file)
            number = by_content.pop((file.rows, digest), None)
            if number is not None:
                renamed[file.name] = number
                file = replace(file, digest=digest)
        files.append(file)
    return replace(manifest, files=tuple(files)), renamed


def _find_finished(
    manifest: Manifest, state: LedgerState, output: Place, tails: Sequence[Tail], moved: int
) -> dict[str, Bitmap]:
    """Returns the finished rows of the tails, by file.

    moved: the number of finished rows that are not where the ledger has them.
    Raises JobError if a finished row is in no file, or the output's files are not those of its log.
    """
    shown, total = storage.redact(output.url), state.counts.rows

    def read(take: Callable[[pa.Array], None]) -> None:
        try:
            read_finished_ids(output, state, take)
        except FileNotFoundError as error:
            raise RunError(
                f"{shown}: a file disappeared while the ids of its finished rows were read: does "
                "another run work on it? Run the same command again"
            ) from error

    found = find_finished(tails, read, total)
    if (found.ids, found.distinct) != (total, total):
        raise JobError(
            f"{shown}: the manifest has rows in other files than before, so the ids of the "
            f"{total} finished rows are needed: found {found.ids} of them ({found.distinct} "
            "different ones) in the output's files: put back what was moved or removed there, "
            f"{_ADVICE}"
        )
    if gone := moved - found.rows:
        ids = find_missing(manifest.files, read, total, _SHOWN_IDS)
        examples = ", ".join(map(_shown, ids)) + (", ..." if gone > len(ids) else "")
        raise JobError(
            f"{storage.redact(manifest.url)}: found {gone} of the output's {total} finished rows "
            f"no longer in the manifest, expected all of them: {examples}: put these ids back, "
            f"{_ADVICE}"
        )
    return found.bitmaps


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."
