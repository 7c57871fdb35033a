"""The log, its one writer, and who may write."""

import asyncio

import numpy as np
import pytest

from pipeline import ledger, storage
from pipeline.ledger import Commit, Ledger, TakenOverError
from pipeline.ledger_state import Counts, KnownFile, LedgerState, rows_of, text_of
from schemas.errors import JobError

HEADER = {"fingerprint": "f", "parts": {}, "layout": {}}
FILES = [KnownFile("a.parquet", 100, "da"), KnownFile("b.parquet", 10, "db")]


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    if request.param == "local":
        return storage.resolve(str(tmp_path / "out"))
    return storage.resolve(f"{request.getfixturevalue('s3')}/ledger/{tmp_path.name}")


def begin(output, run, files=FILES):
    state = ledger.load(output)
    ledger.begin(output, state, run, HEADER, files)
    return state


def commit(token, number, *indices, ok=None):
    return Commit(
        token, {number: np.array(indices, np.int64)}, Counts(ok=len(indices), output_tokens=5)
    )


def taken(answer):
    return {number: rows.tolist() for number, rows in answer.items()}


def pending(state, number, rows):
    return np.flatnonzero(state.pending(number, 0, rows)).tolist()


@pytest.mark.parametrize("indices", [[], [0], [3, 4, 5], [0, 2, 3, 9, 10, 11, 40]])
def test_ranges_as_text_and_back(indices):
    assert rows_of(text_of(np.array(indices, np.int64))).tolist() == indices


def test_what_is_committed_is_there_after_a_restart(output):
    begin(output, "one")
    actor = Ledger(output.url, "one")
    assert asyncio.run(actor.commit(commit("t1", 0, 1, 2, 3, 50))) == {}
    assert asyncio.run(actor.commit(commit("t2", 1, 0))) == {}
    again = Ledger(output.url, "one")
    assert taken(asyncio.run(again.taken({0: np.arange(4), 1: np.arange(3)}))) == {
        0: [1, 2, 3],
        1: [0],
    }
    state = ledger.load(output)
    assert pending(state, 0, 100) == [i for i in range(100) if i not in (1, 2, 3, 50)]
    assert pending(state, 1, 10) == list(range(1, 10))
    assert state.pending(0, 2, 5).tolist() == [False, False, True]
    assert state.counts == Counts(ok=5, output_tokens=10)


def test_all_rows_or_none(output):
    begin(output, "one")
    actor = Ledger(output.url, "one")
    asyncio.run(actor.commit(commit("t1", 0, 4, 5)))
    assert taken(asyncio.run(actor.commit(commit("t2", 0, 5, 6)))) == {0: [5]}
    assert pending(ledger.load(output), 0, 8) == [0, 1, 2, 3, 6, 7]


def test_the_same_commit_twice_counts_once(output):
    begin(output, "one")
    asyncio.run(Ledger(output.url, "one").commit(commit("t1", 0, 4, 5)))
    again = Ledger(output.url, "one")  # the first answer was lost with the actor
    assert asyncio.run(again.commit(commit("t1", 0, 4, 5))) == {}
    assert ledger.load(output).counts.ok == 2


def test_commits_that_come_together_share_a_record_and_no_row(output):
    begin(output, "one")
    actor = Ledger(output.url, "one")

    async def all_at_once():
        commits = [commit(f"t{i}", 0, 2 * i, 2 * i + 1) for i in range(20)]
        commits += [commit(f"u{i}", 0, 2 * i + 1, 60 + i) for i in range(20)]
        return await asyncio.gather(*(actor.commit(one) for one in commits))

    answers = [taken(answer) for answer in asyncio.run(all_at_once())]
    assert answers[:20] == [{}] * 20
    assert answers[20:] == [{0: [2 * i + 1]} for i in range(20)]
    state = ledger.load(output)
    assert state.counts.ok == 40
    assert state.sequence < 10


def test_a_newer_run_stops_the_older_one(output):
    begin(output, "one")
    old = Ledger(output.url, "one")
    asyncio.run(old.commit(commit("t1", 0, 1)))
    begin(output, "two")
    new = Ledger(output.url, "two")
    with pytest.raises(TakenOverError, match="run two has begun on the same output"):
        asyncio.run(old.commit(commit("t2", 0, 2)))
    assert asyncio.run(new.commit(commit("t3", 0, 2))) == {}
    with pytest.raises(TakenOverError):
        asyncio.run(old.commit(commit("t4", 0, 3)))
    assert pending(ledger.load(output), 0, 5) == [0, 3, 4]


def test_an_actor_that_restarts_in_a_newer_run_does_not_write(output):
    begin(output, "one")
    begin(output, "two")
    with pytest.raises(TakenOverError):
        asyncio.run(Ledger(output.url, "one").commit(commit("t1", 0, 1)))


def test_of_two_runs_that_start_together_one_goes_on(output):
    begin(output, "zero")
    first, second = ledger.load(output), ledger.load(output)
    ledger.begin(output, first, "one", HEADER, FILES)
    with pytest.raises(TakenOverError, match="run one"):
        ledger.begin(output, second, "two", HEADER, FILES)


def test_files_keep_their_numbers_and_may_grow(output):
    begin(output, "one")
    asyncio.run(Ledger(output.url, "one").commit(commit("t1", 1, 9)))
    grown = [KnownFile("0.parquet", 3, "d0"), FILES[0], KnownFile("b.parquet", 30, "db2")]
    begin(output, "two", grown)
    state = ledger.load(output)
    assert [file.name for file in state.files] == ["a.parquet", "b.parquet", "0.parquet"]
    assert state.files[1] == grown[2]
    assert pending(state, 1, 30) == [i for i in range(30) if i != 9]
    assert state.run_counts == Counts()
    assert state.counts.ok == 1


def test_a_damaged_log_is_refused(output):
    begin(output, "one")
    storage.put(output / ledger.HIDDEN / "log" / "000000000009.json", b"{}")
    with pytest.raises(JobError, match=r"log is damaged \(record 3 is missing\)"):
        ledger.load(output)
    storage.remove(output / ledger.HIDDEN / "log" / "000000000009.json")
    storage.put(output / ledger.HIDDEN / "log" / "000000000003.json", b"{half")
    with pytest.raises(JobError, match="log is damaged"):
        ledger.load(output)


def test_a_billion_rows_take_a_bit_each():
    state = LedgerState()
    entry = {"number": 0, "name": "a", "rows": 1_000_000_000, "digest": "d"}
    state.apply({"kind": "start", "run": "one", "files": [entry]})
    assert sum(bitmap.nbytes for bitmap in state.done) == 125_000_000
    state.apply(
        {
            "kind": "commit",
            "commits": [{"token": "t", "rows": {"0": "999999990-999999999"}, "counts": {"ok": 10}}],
        }
    )
    last = state.pending(0, 999_999_980, 1_000_000_000).tolist()
    assert last == [True] * 10 + [False] * 10
