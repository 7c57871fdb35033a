"""Commits to the ledger: all rows or none, once, and only by the newest writer."""

import asyncio

import numpy as np
import pytest

from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.ledger import Commit, CommitReply, Ledger, TakenOverError
from mediamill.pipeline.ledger.state import Counts, KnownFile, LedgerState, Part, rows_of, text_of
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError

HEADER = {"fingerprint": "f", "parts": {}, "layout": {}}
PER_FILE = 1000
FILES = [KnownFile("a.parquet", 100, "da"), KnownFile("b.parquet", 10, "db")]


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    if request.param == "local":
        return storage.resolve(str(tmp_path / "out"))
    return storage.resolve(f"{request.getfixturevalue('s3')}/ledger/{tmp_path.name}")


def begin(output, run, files=FILES, per_file=PER_FILE):
    state = ledger.load(output)
    ledger.begin(output, state, run, HEADER, files, per_file)
    return state


def commit(token, number, *indices):
    """A commit of rows that are staged as one part of the folder "k=1"."""
    rows = {number: np.array(indices, np.int64)}
    parts = (("k=1", Part(token, 0, 10, 0, len(indices))),)
    return Commit(token, rows, Counts(ok=len(indices), output_tokens=5), parts)


def as_lists(rows):
    return {number: indices.tolist() for number, indices in rows.items()}


def do(coroutine):
    """Calls the ledger without Ray."""
    return asyncio.run(coroutine)


def pending(state, number, rows):
    return np.flatnonzero(state.pending(number, 0, rows)).tolist()


@pytest.mark.parametrize("indices", [[], [0], [3, 4, 5], [0, 2, 3, 9, 10, 11, 40]])
def test_ranges_as_text_and_back(indices):
    assert rows_of(text_of(np.array(indices, np.int64))).tolist() == indices


def test_commits_are_read_after_a_restart(output):
    begin(output, "one")
    actor = Ledger(output.url, "one")
    assert do(actor.commit(commit("t1", 0, 1, 2, 3, 50))) == CommitReply()
    assert do(actor.commit(commit("t2", 1, 0))) == CommitReply()
    again = Ledger(output.url, "one")
    assert as_lists(do(again.finished({0: np.arange(4), 1: np.arange(3)}))) == {
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
    do(actor.commit(commit("t1", 0, 4, 5)))
    assert as_lists(do(actor.commit(commit("t2", 0, 5, 6))).finished) == {0: [5]}
    assert pending(ledger.load(output), 0, 8) == [0, 1, 2, 3, 6, 7]


def test_the_same_commit_twice_counts_once(output):
    begin(output, "one")
    do(Ledger(output.url, "one").commit(commit("t1", 0, 4, 5)))
    again = Ledger(output.url, "one")  # the first reply was lost with the actor
    assert do(again.commit(commit("t1", 0, 4, 5))) == CommitReply()
    assert ledger.load(output).counts.ok == 2


def test_concurrent_commits_share_a_record_and_no_row(output):
    begin(output, "one")
    actor = Ledger(output.url, "one")

    async def all_at_once():
        commits = [commit(f"t{i}", 0, 2 * i, 2 * i + 1) for i in range(20)]
        commits += [commit(f"u{i}", 0, 2 * i + 1, 60 + i) for i in range(20)]
        return await asyncio.gather(*(actor.commit(one) for one in commits))

    replies = [as_lists(reply.finished) for reply in do(all_at_once())]
    assert replies[:20] == [{}] * 20
    assert replies[20:] == [{0: [2 * i + 1]} for i in range(20)]
    state = ledger.load(output)
    assert state.counts.ok == 40
    assert state.sequence < 10


def test_a_newer_run_stops_the_older_one(output):
    begin(output, "one")
    old = Ledger(output.url, "one")
    do(old.commit(commit("t1", 0, 1)))
    begin(output, "two")
    new = Ledger(output.url, "two")
    with pytest.raises(TakenOverError, match="run two has begun on the same output"):
        do(old.commit(commit("t2", 0, 2)))
    assert do(new.commit(commit("t3", 0, 2))) == CommitReply()
    with pytest.raises(TakenOverError):
        do(old.commit(commit("t4", 0, 3)))
    assert pending(ledger.load(output), 0, 5) == [0, 3, 4]


def test_an_actor_that_restarts_in_a_newer_run_does_not_write(output):
    begin(output, "one")
    begin(output, "two")
    with pytest.raises(TakenOverError):
        do(Ledger(output.url, "one").commit(commit("t1", 0, 1)))


def test_of_two_actors_of_one_run_the_older_one_stops(output):
    begin(output, "one")
    old = Ledger(output.url, "one")
    do(old.commit(commit("t1", 0, 1)))
    new = Ledger(output.url, "one")  # does not know the next commit
    do(old.commit(commit("t2", 0, 2)))
    assert as_lists(do(new.commit(commit("t3", 0, 2, 3))).finished) == {0: [2]}
    with pytest.raises(TakenOverError):
        do(old.commit(commit("t4", 0, 4)))
    assert do(new.commit(commit("t4", 0, 4))) == CommitReply()
    assert pending(ledger.load(output), 0, 6) == [0, 3, 5]


def test_nothing_is_committed_after_the_end(output):
    state = begin(output, "one")
    actor = Ledger(output.url, "one")
    do(actor.commit(commit("t1", 0, 1)))
    ledger.end(output, state, {})
    with pytest.raises(TakenOverError):
        do(actor.commit(commit("t2", 0, 2)))


def test_a_storage_that_fails_after_it_has_stored(output, monkeypatch):
    begin(output, "one")
    actor = Ledger(output.url, "one")
    do(actor.commit(commit("t0", 0, 0)))
    put_if_absent = storage.put_if_absent

    def put_and_fail(place, data):
        put_if_absent(place, data)
        raise OSError("the connection was lost")

    monkeypatch.setattr(storage, "put_if_absent", put_and_fail)
    with pytest.raises(OSError, match="connection"):
        do(actor.commit(commit("t1", 0, 1)))
    monkeypatch.setattr(storage, "put_if_absent", put_if_absent)
    assert as_lists(do(actor.commit(commit("t2", 0, 1, 2))).finished) == {0: [1]}
    assert do(actor.commit(commit("t1", 0, 1))) == CommitReply()
    assert ledger.load(output).counts.ok == 2


def test_a_folder_with_enough_rows_gets_a_file(output):
    begin(output, "one", per_file=4)
    actor = Ledger(output.url, "one")
    assert do(actor.commit(commit("t1", 0, 0, 1, 2))).groups == ()
    (group,) = do(actor.commit(commit("t2", 0, 3, 4, 5))).groups
    assert group.name.startswith("k=1/part-")
    assert group.parts == (Part("t1", 0, 10, 0, 3), Part("t2", 0, 10, 0, 1))
    assert do(actor.commit(commit("t2", 0, 3, 4, 5))).groups == ()  # a task is publishing that one
    first, second = do(actor.commit(commit("t3", 0, *range(6, 12)))).groups
    assert first.parts == (Part("t2", 0, 10, 1, 3), Part("t3", 0, 10, 0, 2))
    assert second.parts == (Part("t3", 0, 10, 2, 6),)
    assert do(actor.published([group.name])).unneeded == ("t1",)
    again = Ledger(output.url, "one")
    assert set(do(again.published([first.name])).unneeded) == {"t2"}
    state = ledger.load(output)
    assert (list(state.groups.values()), state.parts) == ([second], {})
    assert (state.tokens, state.waiting) == ({"t3": 1}, {})
    assert LedgerState(parts=state.parts, groups=state.groups).tokens == state.tokens
    assert do(again.published([first.name, second.name, "no such"])).unneeded == ("t3",)
    assert ledger.load(output).tokens == {}
    # Rows whose token was dropped are not finished twice either.
    assert as_lists(do(again.commit(commit("t1", 0, 0, 1, 2))).finished) == {0: [0, 1, 2]}


def test_only_one_of_two_runs_that_start_together_goes_on(output):
    begin(output, "zero")
    first, second = ledger.load(output), ledger.load(output)
    ledger.begin(output, first, "one", HEADER, FILES, PER_FILE)
    with pytest.raises(TakenOverError, match="run one"):
        ledger.begin(output, second, "two", HEADER, FILES, PER_FILE)


def test_files_keep_their_numbers_and_may_grow(output):
    begin(output, "one")
    do(Ledger(output.url, "one").commit(commit("t1", 1, 9)))
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
    state.apply({"kind": "start", "run": "one", "rows_per_file": 9, "files": [entry]})
    assert sum(bitmap.nbytes for bitmap in state.done) == 125_000_000
    state.apply(
        {
            "kind": "commit",
            "commits": [
                {
                    "token": "t",
                    "rows": {"0": "999999990-999999999"},
                    "counts": {"ok": 10},
                    "parts": [],
                }
            ],
            "groups": [],
            "published": [],
        }
    )
    last = state.pending(0, 999_999_980, 1_000_000_000).tolist()
    assert last == [True] * 10 + [False] * 10
