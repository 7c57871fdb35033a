"""Finds, at the start of a run, which finished rows it does again, and stores them in the log.

These are rows whose files are gone, and the error rows of a retry.
"""

from collections.abc import Callable
from dataclasses import asdict

from mediamill.pipeline.ledger import ledger, recovery
from mediamill.pipeline.ledger.bitmaps import text_of_bitmap
from mediamill.pipeline.ledger.inventory import count, record_of, take_inventory
from mediamill.pipeline.ledger.state import LedgerState
from mediamill.pipeline.manifest.manifest import Manifest
from mediamill.pipeline.retry import chosen_rows
from mediamill.pipeline.retry.choose import choose
from mediamill.pipeline.retry.lost_rows import NO_FINDINGS, CountRules, find_lost
from mediamill.pipeline.retry.options import Retry
from mediamill.pipeline.storage.storage import Place

Tell = Callable[[str], None]


def reopen_rows(
    output: Place,
    state: LedgerState,
    manifest: Manifest,
    retry: Retry | None,
    run: str,
    tell: Tell,
    rules: CountRules = NO_FINDINGS,
) -> None:
    """Stores what the run does again. tell: called with sentences for the user.

    rules: how the rows of the output are counted, if some are gone.

    Must be called after the output was recovered and before the run's first task.
    Raises TakenOverError when another run has begun, and JobError for a wrong condition.
    """
    later = retry is not None and retry.only
    _reopen_lost(output, state, manifest, tell, later, rules)
    chosen_rows.remove(output)
    if retry is None:
        return
    choice = choose(output, state, manifest, retry, run)
    for sentence in choice.sentences():
        tell(sentence)
    redo = {str(number): text_of_bitmap(bitmap) for number, bitmap in choice.redo.items()}
    if redo or retry.only:
        ledger.note(output, state, {"kind": "retry", "redo": redo, "only": retry.only})


def _reopen_lost(
    output: Place,
    state: LedgerState,
    manifest: Manifest,
    tell: Tell,
    later: bool,
    rules: CountRules,
) -> None:
    """Marks the rows of files that are gone as not finished, and records the visible files.

    later: whether another run does them.
    """
    found = take_inventory(output, state)
    for sentence in found.sentences():
        tell(sentence)
    files = found.files
    if found.gone or found.missing_rows:
        lost = find_lost(output, state, manifest, found.files, rules)
        files = {name: file for name, file in files.items() if name not in lost.copies}
        if lost.ids != lost.distinct:
            tell(f"{count(lost.ids - lost.distinct, 'row')} of the output are there twice")
        if lost.rows:
            recovery.mark_unfinished(output)
            gone = count(len(found.gone), "file") + (
                " that is" if len(found.gone) == 1 else " that are"
            )
            where = f"{gone} gone" if found.gone else "files that have changed"
            verb = "is" if lost.rows == 1 else "are"
            when = " by the job's next run, not by a retry" if later else ""
            tell(f"{count(lost.rows, 'row')} of {where} {verb} done again{when}")
            rows = {str(number): text_of_bitmap(bits) for number, bits in lost.bitmaps.items()}
            ledger.note(
                output,
                state,
                {
                    "kind": "reopen",
                    "rows": rows,
                    "counts": asdict(lost.counts),
                    "visible": record_of(files),
                },
            )
            return
    elif state.visible is not None and not found.compacted:
        return
    ledger.note(output, state, {"kind": "inventory", "visible": record_of(files)})
