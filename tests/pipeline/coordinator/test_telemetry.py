"""What the coordinator keeps of the run's processes."""

import pytest

from mediamill.pipeline.coordinator.load_failures import LoadFailures
from mediamill.pipeline.coordinator.quarantine import WorkerId
from mediamill.pipeline.coordinator.telemetry import EngineReport, TelemetryStore
from mediamill.pipeline.coordinator.utilization import BUSY, STEP_MS, UP
from mediamill.schemas.progress import Engines, ErrorExample


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def loads():
    return LoadFailures(lambda node: True)


def test_the_occupancy_is_that_of_the_engines_that_still_report(clock, loads):
    store = TelemetryStore(clock)
    assert store.view({}, loads).engines == Engines()
    store.put_engine("a", EngineReport(10, 1, 100, 30))
    store.put_engine("b", EngineReport(20, 2, 100, 50))
    assert store.view({}, loads).engines == Engines(30, 3, 0.4)
    clock.now = 60.0
    store.put_engine("a", EngineReport(5, 0, 0, 0))
    clock.now = 100.0
    assert store.view({}, loads).engines == Engines(5, 0, None)


def test_the_first_error_row_of_a_code_is_kept(clock, loads):
    store = TelemetryStore(clock)
    store.add_examples({"poison": ErrorExample("1", "first")})
    store.add_examples({"poison": ErrorExample("2", "second"), "oom": ErrorExample("3", "third")})
    examples = store.view({}, loads).examples
    assert {code: example.id for code, example in examples.items()} == {"poison": "1", "oom": "3"}


def test_shares_are_those_of_the_last_minute(clock, loads):
    store, counters = TelemetryStore(clock), dict.fromkeys(("generate" + UP, STEP_MS), 0)
    for second in range(400):
        clock.now = float(second)
        counters["generate" + UP] += 1000
        counters["generate" + BUSY] = counters["generate" + UP]
        counters[STEP_MS] += 900 if second < 300 else 200
        view = store.view(counters, loads)
        if second == 250:
            assert view.shares["engine"] == pytest.approx(0.9, abs=0.02)
    assert view.shares["engine"] == pytest.approx(0.2, abs=0.02)
    assert len(store._samples) < 40


def test_processes_are_counted_as_they_come_and_go(clock, loads):
    store = TelemetryStore(clock)
    first = WorkerId("generate", "actor", "process 1", "node")
    loads.enter(first)
    view = store.view({}, loads)
    assert (view.loading, view.loaded, view.lost) == ({"generate": 1}, {}, {})
    loads.loaded(first)
    assert store.view({}, loads).loaded == {"generate": 1}
    loads.enter(WorkerId("generate", "actor", "process 2", "node"))
    view = store.view({}, loads)
    assert (view.loading, view.loaded, view.lost) == ({"generate": 1}, {}, {"generate": 1})
