"""Finds the rows that the log calls finished and that no file of the output holds."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.bitmaps import Bitmap, count_bits
from mediamill.pipeline.ledger.finished_ids import read_hidden
from mediamill.pipeline.ledger.inventory import Files
from mediamill.pipeline.ledger.state import Counts, LedgerState
from mediamill.pipeline.manifest.finished_rows import Tail, find_finished
from mediamill.pipeline.manifest.manifest import Manifest
from mediamill.pipeline.quality.count import count_findings
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.task import Question

_BATCH_ROWS = 8192
_READERS = 8
_TOKENS = (c.PROMPT_TOKENS, c.VISUAL_TOKENS, c.OUTPUT_TOKENS)


@dataclass(frozen=True)
class LostRows:
    """bitmaps: by number of a manifest file, the rows that the log calls finished and nobody has.

    rows: their number. unknown: finished rows in the output that are not finished by the log.
    ids, distinct: of all rows in the output. counts: of the finished rows that are not lost.
    copies: files that the log does not know, and whose rows others have too.
    """

    bitmaps: dict[int, Bitmap]
    rows: int
    unknown: int
    ids: int
    distinct: int
    counts: Counts
    copies: frozenset[str]


@dataclass(frozen=True)
class CountRules:
    """Whose answers are examined for findings, and the language that they should have."""

    questions: Sequence[Question] = ()
    language: str | None = None

    def counts_of(self, table: pa.Table) -> Counts:
        """Returns the counts of rows of the result."""
        if not self.questions:
            return counts_of(table)
        ok = table.filter(pc.equal(table[c.STATUS], c.STATUS_OK))
        findings, _ = count_findings(ok, self.questions, self.language)
        return replace(counts_of(table), findings=findings)

    def columns(self, known: Collection[str]) -> list[str]:
        """Returns those of the known columns that are counted."""
        wanted = [c.ID, c.STATUS, c.ERROR_CODE, c.DUPLICATE_OF, *_TOKENS]
        for question in self.questions:
            wanted += [question.column(name) for name in (c.TEXT, c.FINISH_REASON, c.MEAN_LOGPROB)]
        return [name for name in dict.fromkeys(wanted) if name in known]


NO_FINDINGS = CountRules()


def find_lost(
    output: Place,
    state: LedgerState,
    manifest: Manifest,
    files: Files,
    rules: CountRules = NO_FINDINGS,
) -> LostRows:
    """Reads the ids of all rows of the files, and of those that are hidden yet.

    Memory does not grow with the rows: they are sorted in a temporary file.
    """
    counts: dict[str, Counts] = {}
    hidden = Counts()

    def read(take: Callable[[pa.Array], None]) -> None:
        hidden.__init__()  # type: ignore[misc]

        def take_file(name: str) -> Counts:
            place = output / name
            own = Counts()
            with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
                known = parquet.schema_arrow.names
                if c.ID not in known or c.STATUS not in known:
                    return own
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=rules.columns(known)):
                    take(batch.column(batch.schema.get_field_index(c.ID)))
                    own.add(rules.counts_of(pa.Table.from_batches([batch])))
            return own

        with ThreadPoolExecutor(_READERS) as threads:
            counts.update(zip(files, threads.map(take_file, files), strict=True))

        def take_hidden(table: pa.Table) -> None:
            for ids in table[c.ID].chunks:
                take(ids)
            hidden.add(rules.counts_of(table))

        read_hidden(output, state, set(files), take_hidden)

    tails = [Tail(file, 0) for file in manifest.files]
    found = find_finished(tails, read, state.counts.rows)
    numbers = {file.name: number for number, file in enumerate(state.files) if file.name}
    lost, unknown = {}, 0
    for file in manifest.files:
        if file.name not in numbers:
            continue
        done = state.done[numbers[file.name]]
        present = np.zeros_like(done)
        bitmap = found.bitmaps.get(file.name, present)[: done.size]
        present[: bitmap.size] = bitmap
        missing = done & ~present
        unknown += count_bits(present & ~done)
        if missing.any():
            lost[numbers[file.name]] = missing
    rows = sum(map(count_bits, lost.values()))
    finished = sum(map(count_bits, state.done)) - rows
    total, copies = _counts_once(hidden, counts, state.visible or {}, finished)
    return LostRows(lost, rows, unknown, found.ids, found.distinct, total, copies)


def _counts_once(
    hidden: Counts, by_file: Mapping[str, Counts], known: Collection[str], rows: int
) -> tuple[Counts, frozenset[str]]:
    """Returns the counts of `rows` rows that the files hold, although some may be there twice.

    known: files of the log. Others are copies, as far as they have more rows than there are; their
    names are returned too.
    """
    total, copies = Counts(), set[str]()
    total.add(hidden)
    for name in sorted(by_file, key=lambda name: (name not in known, name)):
        if name in known or total.rows + by_file[name].rows <= rows:
            total.add(by_file[name])
        else:
            copies.add(name)
    total.ok = max(0, total.ok + rows - total.rows)
    return total, frozenset(copies)


def counts_of(table: pa.Table) -> Counts:
    """Returns the counts of rows of the result. The engine made no tokens for copies."""
    statuses = pc.value_counts(table[c.ERROR_CODE].filter(pc.equal(table[c.STATUS], "error")))
    errors = {entry["values"].as_py(): entry["counts"].as_py() for entry in statuses}
    if c.DUPLICATE_OF in table.column_names:
        made = table.filter(pc.is_null(table[c.DUPLICATE_OF]))
    else:
        made = table
    prompt, visual, output = (
        int(pc.sum(made[name]).as_py() or 0) if name in made.column_names else 0 for name in _TOKENS
    )
    return Counts(table.num_rows - sum(errors.values()), errors, prompt, visual, output)
