"""A guarded stage returns each row once and in order, however the coordinator admits its rows."""

import random
import threading
import time
from dataclasses import dataclass

import pyarrow as pa
import pytest

from mediamill.pipeline.coordinator.failure_policy import GENERATE, FailurePolicy
from mediamill.pipeline.coordinator.guarded_stage import GuardedStage
from mediamill.pipeline.coordinator.quarantine import Admission, WorkerId
from mediamill.pipeline.faults import IdentityError
from mediamill.pipeline.records import ROW_STRUCT
from mediamill.schemas import columns as c
from mediamill.schemas.job import Limits, Resources

RESOURCES = Resources(max_engine_failures=8)
LIMITS = Limits(max_error_rate=None, error_rate_rows=1000)


class LocalCoordinator(FailurePolicy):
    """The coordinator's failure policy, called without Ray."""

    def __init__(self, limits=LIMITS):
        super().__init__(RESOURCES, limits, lambda _node: True)
        self.processes = 0
        self.lock = threading.Lock()

    def worker_id(self, pool):
        self.processes += 1
        return WorkerId(pool, "actor", str(self.processes), "node")

    def begin(self, worker, rows):
        with self.lock:
            return super().begin(worker, rows)

    def count(self, numbers):
        pass

    def add_examples(self, examples):
        self.examples = examples


@dataclass
class Echo:
    """A stage that returns its table, and records the rows and how many calls ran at once."""

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


def died_with(coordinator, numbers):
    """Simulates a process that died with these rows in flight."""
    guard = GuardedStage(Echo, {"calls": []}, coordinator, GENERATE)
    coordinator.begin(guard._worker, [(0, number) for number in numbers])


@pytest.mark.parametrize("suspects", [[], [3], [0, 19], list(range(20)), [25]])
def test_rows_come_back_in_order_and_suspects_are_isolated(suspects):
    coordinator, calls = LocalCoordinator(), []
    died_with(coordinator, suspects)
    guard = GuardedStage(Echo, {"calls": calls}, coordinator, GENERATE)
    table = table_of(range(20))
    assert guard(table).equals(table)
    done = sorted(name for names, _ in calls for name in names)
    assert done == sorted(table[c.ID].to_pylist())
    for names, _ in calls:
        isolated = [name for name in names if int(name[4:]) in suspects]
        assert not isolated or (isolated == names and len(names) <= 8)
    assert guard(table).equals(table)
    assert len(calls[-1][0]) == 20, "a finished row is no suspect any more"


def test_suspects_have_the_process_to_themselves_among_many_threads():
    coordinator, calls = LocalCoordinator(), []
    suspects = set(random.Random(1).sample(range(160), 30))
    died_with(coordinator, suspects)
    guard = GuardedStage(Echo, {"calls": calls, "pause": 0.005}, coordinator, GENERATE)
    results = {}

    def work(start):
        results[start] = guard(table_of(range(start, start + 20)))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 160, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for start in range(0, 160, 20):
        assert results[start].equals(table_of(range(start, start + 20)))
    isolated = [inside for names, inside in calls if int(names[0][4:]) in suspects]
    assert set(isolated) == {1}
    assert max(inside for _, inside in calls) > 1


def test_poison_passes_by_as_an_error():
    coordinator, calls = LocalCoordinator(), []
    died_with(coordinator, range(10))
    died_with_group(coordinator, [4])
    died_with_group(coordinator, [4])
    guard = GuardedStage(Echo, {"calls": calls}, coordinator, GENERATE)
    codes = guard(table_of(range(10)))[c.ERROR_CODE].to_pylist()
    assert codes == [None] * 4 + ["poison"] + [None] * 5
    example = coordinator.examples["poison"]
    assert (example.id, example.message[:18]) == ("row-4", "the row ended the ")
    assert coordinator.status().stop_reason is None


def died_with_group(coordinator, numbers):
    guard = GuardedStage(Echo, {"calls": []}, coordinator, GENERATE)
    coordinator.begin_isolated(guard._worker, [(0, number) for number in numbers])
    coordinator.enter(coordinator.worker_id(GENERATE))


def test_nothing_is_begun_once_the_run_drains():
    coordinator, calls = LocalCoordinator(), []
    guard = GuardedStage(Echo, {"calls": calls}, coordinator, GENERATE)
    coordinator.drain()
    assert guard(table_of(range(5))).num_rows == 0
    assert calls == [([], 1)]
    assert coordinator.begin(guard._worker, [(0, 1)]) == Admission(stop=True)


def test_an_answer_of_the_wrong_row_ends_the_run():
    def swapped(**_options):
        def stage(table):
            raise IdentityError("an answer came back to the wrong row")

        return stage

    coordinator = LocalCoordinator()
    guard = GuardedStage(swapped, {}, coordinator, GENERATE)
    with pytest.raises(IdentityError):
        guard(table_of(range(5)))
    status = coordinator.status()
    assert (status.stop_reason, status.abort, status.draining) == (
        "an answer came back to the wrong row",
        True,
        True,
    )
    assert status.remedy == "mend"


@pytest.mark.parametrize(("errors", "stops"), [(2, False), (3, True)])
def test_the_error_rate_is_checked_after_enough_rows(errors, stops):
    coordinator = LocalCoordinator(Limits(max_error_rate=0.1, error_rate_rows=20))
    guard = GuardedStage(Echo, {"calls": []}, coordinator, GENERATE)
    bad = pa.array(["decode_corrupt"] * errors + [None] * (20 - errors), pa.string())
    table = table_of(range(20))
    table = table.set_column(table.schema.get_field_index(c.ERROR_CODE), c.ERROR_CODE, bad)
    guard(table.slice(0, 19))
    assert coordinator.status().stop_reason is None
    guard(table.slice(19))
    assert (coordinator.status().stop_reason is not None) == stops
    if stops:
        assert "found 3 of 20 in this run (decode_corrupt 3)" in coordinator.status().stop_reason
