"""Which rows a run does with a limit, with a sample, and with both."""

import numpy as np
import pytest

from mediamill.pipeline.ledger.state import KnownFile, LedgerState
from mediamill.pipeline.manifest import selection as module
from mediamill.pipeline.manifest.selection import ALL_ROWS, RowChoice, Selection
from mediamill.schemas.errors import JobError

SIZES = (5, 0, 100, 19)


class File:
    def __init__(self, name, rows):
        self.name, self.rows = name, rows


class Manifest:
    files = tuple(File(str(number), rows) for number, rows in enumerate(SIZES))
    rows = sum(SIZES)


def state(*finished):
    """The ledger's state; finished: (file, row)."""
    new = LedgerState()
    for number, file in enumerate(Manifest.files):
        new._add_file(number, KnownFile(file.name, file.rows, "digest"))
    for number, row in finished:
        new._mark(number, np.array([row]))
        new.counts.ok += 1
    return new


def rows_of(selection, ledger):
    return [
        (number, row)
        for number, file in enumerate(Manifest.files)
        for row in np.flatnonzero(selection.pending(ledger, number, 0, file.rows)).tolist()
    ]


def test_all_rows_are_the_unfinished_ones():
    ledger = state((0, 1))
    selection = ALL_ROWS.select(Manifest, ledger)
    assert len(rows_of(selection, ledger)) == selection.missing(ledger) == Manifest.rows - 1
    assert selection.later == 0


@pytest.mark.parametrize("limit", [1, 4, 30, 10**6])
def test_a_limit_is_the_first_rows_that_are_to_do(limit):
    ledger = state((0, 0), (0, 2), (2, 7))
    everything = rows_of(ALL_ROWS.select(Manifest, ledger), ledger)
    selection = RowChoice(limit=limit).select(Manifest, ledger)
    assert rows_of(selection, ledger) == everything[:limit]
    assert selection.missing(ledger) == selection.selected == len(everything[:limit])
    assert selection.later == len(everything[limit:])
    for number, row in everything[:limit]:  # what the run does
        ledger._mark(number, np.array([row]))
        ledger.counts.ok += 1
    assert selection.missing(ledger) == 0
    assert rows_of(selection, ledger) == []
    assert selection.unfinished(ledger, 2, 100) == 0


@pytest.mark.parametrize("chunk", [8, 1 << 20])
def test_a_sample_is_the_same_one_each_time_whatever_is_finished(monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK_ROWS", chunk)
    ledger = state()
    first = rows_of(RowChoice(sample=20).select(Manifest, ledger), ledger)
    assert len(first) == 20
    assert rows_of(RowChoice(sample=20).select(Manifest, ledger), ledger) == first
    assert rows_of(RowChoice(sample=20, seed=1).select(Manifest, ledger), ledger) != first
    later = state(*first[:5], (2, 99), (3, 18))
    selection = RowChoice(sample=20).select(Manifest, later)
    assert set(rows_of(selection, later)) == set(first[5:]) - {(2, 99), (3, 18)}
    both = RowChoice(limit=3, sample=20).select(Manifest, later)
    assert rows_of(both, later) == rows_of(selection, later)[:3]


def test_a_sample_draws_from_the_whole_manifest_evenly():
    ledger, hits = state(), np.zeros(len(SIZES))
    for seed in range(300):
        for number, _ in rows_of(RowChoice(sample=12, seed=seed).select(Manifest, ledger), ledger):
            hits[number] += 1
    expected = 300 * 12 * np.array(SIZES) / Manifest.rows
    assert np.all(np.abs(hits - expected) <= 0.15 * expected + 20)


def test_a_sample_of_more_rows_than_there_are_is_all_of_them():
    ledger = state()
    assert RowChoice(sample=10**6).select(Manifest, ledger).missing(ledger) == Manifest.rows


def test_row_groups_may_begin_anywhere():
    ledger = state((2, 12))
    selection = RowChoice(limit=60).select(Manifest, ledger)
    whole = selection.pending(ledger, 2, 0, 100)
    for start in range(0, 100, 7):
        part = selection.pending(ledger, 2, start, min(start + 7, 100))
        assert part.tolist() == whole[start : start + 7].tolist()


def test_a_manifest_that_is_too_large_for_a_sample_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_MAX_DRAWN_ROWS", 100)
    with pytest.raises(JobError, match="--sample"):
        RowChoice(sample=3).select(Manifest, state())
    assert RowChoice(limit=3).select(Manifest, state()) == Selection(
        {0: np.array([7], np.uint8)}, Manifest.rows, Manifest.rows, 3
    )


@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize("limit", [1, 3, 10])
def test_error_rows_that_a_limit_leaves_out_stay_finished_rows(limit, only):
    ledger = state((0, 0), (0, 2), (2, 7), (2, 9))
    ledger.redo, ledger.redo_only = {0: np.array([0b101], np.uint8)}, only
    ledger.redo[2] = np.zeros(13, np.uint8)
    ledger.redo[2][0] = 1 << 7
    everything = rows_of(ALL_ROWS.select(Manifest, ledger), ledger)
    assert len(everything) == (3 if only else 3 + Manifest.rows - 4)
    selection = RowChoice(limit=limit).select(Manifest, ledger)
    done = everything[:limit]
    assert rows_of(selection, ledger) == done
    again = len({(0, 0), (0, 2), (2, 7)} & {*done})
    assert selection.not_again == 3 - again
    assert selection.missing(ledger) == len(done)
    assert selection.later == (0 if only else Manifest.rows - 4 - (len(done) - again))
    for number, row in done:
        ledger._mark(number, np.array([row]))
        ledger.counts.ok += (number, row) not in [(0, 0), (0, 2), (2, 7)]
    assert selection.missing(ledger) == 0
