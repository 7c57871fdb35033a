"""What a guarded stage gives, whatever the desk says of its rows: each row, once, in order."""

import random
import threading
import time
from dataclasses import dataclass

import pyarrow as pa
import pytest

from mediamill.pipeline.coordinator.failure_policy import GENERATE, FailurePolicy, StopRules
from mediamill.pipeline.coordinator.guarded_stage import GuardedStage
from mediamill.pipeline.coordinator.quarantine import Verdict, Who
from mediamill.pipeline.faults import IdentityError
from mediamill.pipeline.records import ROW_STRUCT
from mediamill.schemas import columns as c

RULES = StopRules(8, None, 1000)


class HereDesk(FailurePolicy):
    """The desk's own bookkeeping, reached without Ray."""

    def __init__(self, rules=RULES):
        super().__init__(rules, lambda _node: True)
        self.processes = 0
        self.lock = threading.Lock()

    def who(self, pool):
        self.processes += 1
        return Who(pool, "actor", str(self.processes), "node")

    def begin(self, who, rows):
        with self.lock:
            return super().begin(who, rows)


@dataclass
class Echo:
    """A stage that gives what it got, and remembers in which company."""

    calls: list
    pause: float = 0.0
    inside: int = 0

    def __call__(self, table):
        self.inside += 1
        names = table[c.ID].to_pylist()
        self.calls.append((names, self.inside))
        time.sleep(self.pause)
        self.inside -= 1
        return table


def table_of(numbers):
    rows = [{"file": 0, "index": number} for number in numbers]
    columns = {c.ID: [f"row-{number}" for number in numbers], c.ROW: pa.array(rows, ROW_STRUCT)}
    for name in (c.STATUS, c.ERROR_CODE, c.ERROR_MESSAGE):
        columns[name] = pa.nulls(len(rows), pa.string())
    return pa.table(columns)


def died_with(desk, numbers):
    """Rows that a process had in work when it died."""
    guard = GuardedStage(Echo, {"calls": []}, desk, GENERATE)
    desk.begin(guard._who, [(0, number) for number in numbers])


@pytest.mark.parametrize("suspects", [[], [3], [0, 19], list(range(20)), [25]])
def test_rows_come_back_in_order_and_suspects_are_apart(suspects):
    desk, calls = HereDesk(), []
    died_with(desk, suspects)
    guard = GuardedStage(Echo, {"calls": calls}, desk, GENERATE)
    table = table_of(range(20))
    assert guard(table).equals(table)
    done = sorted(name for names, _ in calls for name in names)
    assert done == sorted(table[c.ID].to_pylist())
    for names, _ in calls:
        accused = [name for name in names if int(name[4:]) in suspects]
        assert not accused or (accused == names and len(names) <= 8)
    assert guard(table).equals(table)
    assert len(calls[-1][0]) == 20, "who came out is no suspect any more"


def test_suspects_have_the_process_for_themselves_among_many_threads():
    desk, calls = HereDesk(), []
    suspects = set(random.Random(1).sample(range(160), 30))
    died_with(desk, suspects)
    guard = GuardedStage(Echo, {"calls": calls, "pause": 0.005}, desk, GENERATE)
    found = {}

    def work(start):
        found[start] = guard(table_of(range(start, start + 20)))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 160, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for start in range(0, 160, 20):
        assert found[start].equals(table_of(range(start, start + 20)))
    apart = [inside for names, inside in calls if int(names[0][4:]) in suspects]
    assert set(apart) == {1}
    assert max(inside for _, inside in calls) > 1


def test_poison_passes_by_as_an_error():
    desk, calls = HereDesk(), []
    died_with(desk, range(10))
    died_with_group(desk, [4])
    died_with_group(desk, [4])
    guard = GuardedStage(Echo, {"calls": calls}, desk, GENERATE)
    codes = guard(table_of(range(10)))[c.ERROR_CODE].to_pylist()
    assert codes == [None] * 4 + ["poison"] + [None] * 5
    assert desk.word().why is None


def died_with_group(desk, numbers):
    guard = GuardedStage(Echo, {"calls": []}, desk, GENERATE)
    desk.begin_apart(guard._who, [(0, number) for number in numbers])
    desk.enter(desk.who(GENERATE))


def test_nothing_is_begun_once_the_run_ends():
    desk, calls = HereDesk(), []
    guard = GuardedStage(Echo, {"calls": calls}, desk, GENERATE)
    desk.drain()
    assert guard(table_of(range(5))).num_rows == 0
    assert calls == [([], 1)]
    assert desk.begin(guard._who, [(0, 1)]) == Verdict(stop=True)


def test_what_nobody_can_trust_ends_the_run():
    def swapped(**_options):
        def stage(table):
            raise IdentityError("an answer came back to the wrong row")

        return stage

    desk = HereDesk()
    guard = GuardedStage(swapped, {}, desk, GENERATE)
    with pytest.raises(IdentityError):
        guard(table_of(range(5)))
    word = desk.word()
    assert (word.why, word.at_once, word.drains) == (
        "an answer came back to the wrong row",
        True,
        True,
    )


@pytest.mark.parametrize(("errors", "stops"), [(2, False), (3, True)])
def test_the_share_of_errors_is_looked_at_after_enough_rows(errors, stops):
    desk = HereDesk(StopRules(8, 0.1, 20))
    guard = GuardedStage(Echo, {"calls": []}, desk, GENERATE)
    bad = pa.array(["decode_corrupt"] * errors + [None] * (20 - errors), pa.string())
    table = table_of(range(20))
    table = table.set_column(table.schema.get_field_index(c.ERROR_CODE), c.ERROR_CODE, bad)
    guard(table.slice(0, 19))
    assert desk.word().why is None
    guard(table.slice(19))
    assert (desk.word().why is not None) == stops
    if stops:
        assert "found 3 of 20 in this run (decode_corrupt 3)" in desk.word().why
