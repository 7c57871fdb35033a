"""A snapshot restores the state or is refused as damaged; which files it makes obsolete."""

import dataclasses

import numpy as np
import pytest

from mediamill.pipeline.ledger import snapshot as snapshots
from mediamill.pipeline.ledger.state import (
    Counts,
    Group,
    KnownFile,
    LedgerState,
    Part,
    VisibleFile,
)


def any_state(rng, files=12):
    """A state with a value in each of its fields."""
    state = LedgerState()
    for number in range(files):
        rows = int(rng.choice([0, 1, 7, 8, 9, 1000, 4097]))
        share = float(rng.choice([0.0, 0.3, 1.0]))
        groups = tuple(int(size) for size in rng.integers(0, 9, int(rng.integers(0, 3))))
        state.files.append(KnownFile(f"k=ü/{number}.parquet", rows, "d", f"{rows} etag", groups))
        state.done.append(np.packbits(rng.random(rows) < share, bitorder="little"))
    parts = [Part(f"t{i}", 10 * i, 10, int(rng.integers(3)), 5) for i in range(6)]
    return LedgerState(
        header={"kind": "open", "version": 2, "parts": {"prompt": "é\u2028\n", "seed": None}},
        sequence=int(rng.integers(1, 10**12)),
        run="run",
        owner=None if rng.random() < 0.5 else "owner",
        closed=True,
        fences=[1, 2, 900],
        rows_per_file=10_000,
        files=state.files,
        done=state.done,
        parts={"k=1": parts[:2], "": parts[2:3]},
        groups={"k=2/a": Group("k=2/a", tuple(parts[3:5])), "b": Group("b", (parts[5], parts[3]))},
        counts=Counts(5, {"poison": 2}, 1, 2, 10**15),
        run_counts=Counts(),
        redo={3: np.packbits(rng.random(9) < 0.5, bitorder="little")},
        redo_only=True,
        replacements={"k=1/c": parts[4:]},
        visible={"k=1/c": VisibleFile(4, 10**10), "d": VisibleFile(3, -1)},
    )


def same(left, right):
    for field in dataclasses.fields(LedgerState):
        if field.name == "done":
            pairs = zip(left.done, right.done, strict=True)
            assert all(np.array_equal(one, other) for one, other in pairs)
        elif field.name == "redo":
            assert left.redo.keys() == right.redo.keys()
            assert all(np.array_equal(left.redo[n], right.redo[n]) for n in left.redo)
        else:
            assert getattr(left, field.name) == getattr(right, field.name), field.name


@pytest.mark.parametrize("seed", range(6))
def test_there_and_back(seed):
    state = any_state(np.random.default_rng(seed))
    again = snapshots.parse(snapshots.dump(state))
    same(state, again)
    for field in dataclasses.fields(LedgerState):
        assert type(getattr(again, field.name)) is type(getattr(state, field.name))
    same(snapshots.parse(snapshots.dump(LedgerState())), LedgerState())


def test_no_field_of_the_state_is_empty_in_these_tests():
    """A field that is added to the state must be in a snapshot, and so in `any_state`."""
    state, empty = any_state(np.random.default_rng(1)), LedgerState()
    derived = {"snapshot"}  # by the log
    for field in dataclasses.fields(LedgerState):
        if field.name not in {"owner", "run_counts", *derived}:
            assert repr(getattr(state, field.name)) != repr(getattr(empty, field.name)), field.name


def test_a_state_goes_on_after_a_snapshot():
    state = any_state(np.random.default_rng(0))
    again = snapshots.parse(snapshots.dump(state))
    number = next(n for n, file in enumerate(state.files) if file.rows == 1000)
    commit = {
        "token": "late",
        "rows": {str(number): "3,998-999"},
        "counts": {"ok": 3},
        "parts": [["k=1", 0, 9, 3]],
    }
    grown = {"number": 0, "name": state.files[0].name, "rows": 5000, "digest": "e"}
    for restored in (state, again):
        record = {"commits": [commit], "groups": [["k=1", 4, "x"]], "published": ["b"]}
        restored.apply({"kind": "commit", **record})
        restored.apply({"kind": "start", "run": "next", "rows_per_file": 7, "files": [grown]})
    same(state, again)


def test_finished_and_untouched_files_cost_next_to_nothing():
    state = LedgerState()
    for number, share in ((0, 0xFF), (1, 0)):
        state.files.append(KnownFile(str(number), 80_000_000, "d"))
        state.done.append(np.full(10_000_000, share, np.uint8))
    assert len(snapshots.dump(state)) < 1000
    state.done[0][:] = np.frombuffer(np.random.default_rng(0).bytes(10_000_000), np.uint8)
    assert len(snapshots.dump(state)) < 1.01 * 10_000_000


@pytest.mark.parametrize("seed", range(3))
def test_every_damage_is_detected(seed):
    rng = np.random.default_rng(seed)
    data = snapshots.dump(any_state(rng))
    for _ in range(300):
        broken = bytearray(data)
        broken[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError, match="snapshot"):
            snapshots.parse(bytes(broken))
    for size in {0, 1, 26, 27, 28, *rng.integers(0, len(data), 50).tolist()}:
        with pytest.raises(ValueError, match="snapshot"):
            snapshots.parse(data[:size])
    with pytest.raises(ValueError, match="damaged"):
        snapshots.parse(data + b"x")


def test_a_snapshot_of_a_later_version_is_not_guessed_at():
    @dataclasses.dataclass
    class LaterState(LedgerState):
        later: int = 3

    with pytest.raises(ValueError, match="it says later of a LedgerState"):
        snapshots.parse(snapshots.dump(LaterState()))


def test_larger_ledgers_have_longer_intervals_with_a_maximum():
    def interval(rows):
        state = LedgerState(done=[np.zeros(rows // 8, np.uint8)])
        return next(n for n in range(100_000) if snapshots.due(state, n))

    assert [interval(rows) for rows in (0, 10**7, 10**8, 10**9)] == [256, 256, 762, 4096]


@pytest.mark.parametrize("seed", range(20))
def test_removed_files_are_never_needed(seed):
    """Whichever single snapshot is damaged, the records after the next sound one are there; and a
    replaced writer's next number is taken.
    """
    rng = np.random.default_rng(seed)
    last = int(rng.integers(1, 200))
    fences = {1, 2, *(int(n) for n in rng.integers(1, last + 1, int(rng.integers(0, 6))))}
    stored = {f"{n:012}.json" for n in range(1, last + 1)}
    numbers = sorted({int(n) for n in rng.integers(1, last + 1, int(rng.integers(0, 6)))})
    stored |= {snapshots.file_name(n) for n in numbers}
    left = stored - set(snapshots.obsolete(stored, fences))
    retained = sorted(int(name[:12]) for name in left if name.endswith(snapshots.SUFFIX))
    assert retained == numbers[-2:]
    for damaged in (None, *retained):
        sound = max((n for n in retained if n != damaged), default=0)
        assert {f"{n:012}.json" for n in range(sound + 1, last + 1)} <= left
    for fence in fences:  # the replaced writer knew all before the fence, or all but its last
        for known in (fence - 1, fence - 2):
            assert known < 0 or known + 1 < 1 or f"{known + 1:012}.json" in left


def test_snapshots_are_removed_after_the_records_that_they_cover():
    names = [snapshots.file_name(n) for n in (5, 9, 12)] + [f"{n:012}.json" for n in range(1, 14)]
    gone = snapshots.obsolete(names, {1, 2})
    assert gone == [*(f"{n:012}.json" for n in range(3, 10)), snapshots.file_name(5)]
