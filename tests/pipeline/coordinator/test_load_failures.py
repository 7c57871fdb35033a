"""When the failures of workers to load end a run, decided without Ray."""

import pytest

from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE, FailurePolicy
from mediamill.pipeline.coordinator.load_failures import MAX_TRIES
from mediamill.pipeline.coordinator.quarantine import WorkerId
from mediamill.schemas.job import Limits, Resources


class Workers:
    """A policy, and processes of actors that it hears of."""

    def __init__(self):
        self.dead_nodes, self.processes = set(), 0
        self.policy = FailurePolicy(Resources(), Limits(), lambda node: node not in self.dead_nodes)

    def start(self, actor, pool=GENERATE, node="node"):
        self.processes += 1
        worker = WorkerId(pool, actor, str(self.processes), node)
        self.policy.enter(worker)
        return worker

    def fail(self, actor, pool=GENERATE, error="OSError: no such device", is_jobs_fault=False):
        return self.policy.load_failed(self.start(actor, pool), error, is_jobs_fault)

    @property
    def status(self):
        return self.policy.status()


@pytest.fixture
def workers():
    return Workers()


@pytest.mark.parametrize(("is_jobs_fault", "remedy"), [(False, "mend"), (True, "job")])
def test_an_actor_that_never_loads_ends_the_run_after_a_few_tries(workers, is_jobs_fault, remedy):
    pauses = [workers.fail("a", is_jobs_fault=is_jobs_fault) for _ in range(MAX_TRIES - 1)]
    assert pauses == [1.0, 2.0]
    assert workers.status.stop_reason is None
    assert workers.fail("a", is_jobs_fault=is_jobs_fault) >= 30, "it starts no further process"
    assert workers.status.stop_reason == (
        "an engine could not be loaded 3 times in a row: OSError: no such device"
    )
    assert (workers.status.abort, workers.status.remedy) == (True, remedy)


def test_a_process_that_is_killed_while_it_loads_has_had_a_try(workers):
    for _ in range(MAX_TRIES):
        workers.start("a", PREPARE)
        assert workers.status.stop_reason is None
    workers.start("a", PREPARE)
    reason = workers.status.stop_reason
    assert reason.startswith("a process that prepares rows could not be loaded 3 times in a row: ")
    assert "killed while it loaded; the machine may lack memory" in reason


def test_a_retried_call_and_a_lost_node_are_no_tries(workers):
    worker = workers.start("a", node="spot")
    for _ in range(5):
        workers.policy.enter(worker)
    workers.dead_nodes.add("spot")
    for _ in range(5):
        workers.start("a", node="spot")
    assert workers.status.stop_reason is None


def test_tries_count_anew_once_it_has_loaded(workers):
    for _ in range(4):
        workers.fail("a")
        workers.fail("a")
        workers.policy.loaded(workers.start("a"))
    assert workers.status.stop_reason is None


def test_an_engine_that_dies_at_work_has_loaded(workers):
    for _ in range(5):
        workers.policy.loaded(workers.start("a"))
    assert workers.status.stop_reason is None


def test_a_node_where_nothing_loads_does_not_end_what_others_carry_on(workers):
    good = workers.start("good")
    for _ in range(10):
        workers.fail("bad")
    assert workers.status.stop_reason is None, "the other one is still loading"
    workers.policy.loaded(good)
    pauses = [workers.fail("bad") for _ in range(10)]
    assert workers.status.stop_reason is None
    assert pauses[-1] == 60.0
    workers.fail("other", PREPARE)
    workers.fail("other", PREPARE)
    workers.fail("other", PREPARE)
    assert "prepares rows" in workers.status.stop_reason, "each pool is judged alone"


def test_others_that_fail_as_well_or_are_gone_are_no_hope(workers):
    gone = workers.start("gone", node="spot")
    workers.policy.loaded(gone)
    workers.dead_nodes.add("spot")
    workers.fail("b")
    for _ in range(MAX_TRIES):
        assert workers.status.stop_reason is None
        workers.fail("a")
    assert workers.status.stop_reason is not None


def test_a_restarted_coordinator_learns_who_works_from_their_calls(workers):
    worker = WorkerId(GENERATE, "old", "1", "node")
    workers.policy.begin(worker, [(0, 1)])  # it entered the coordinator before this one
    for _ in range(5):
        workers.fail("bad")
    assert workers.status.stop_reason is None


def test_a_restarted_coordinator_goes_on_counting_broken_engines():
    policy = FailurePolicy(Resources(max_engine_failures=2), Limits(), lambda _: True)
    policy.carry(2)
    policy.carry(2)
    assert policy.status().engines_replaced == 2
    policy.engine_broken("CUDA error")
    assert "engines broke 3 times in this run, expected at most 2" in policy.status().stop_reason
    assert policy.status().remedy == "again"


def test_reasons_hold_no_secrets_and_are_cut(workers):
    error = f"OSError: no answer of https://user:hunter2@host/model?token=hunter3 {'x' * 5000}"
    for _ in range(MAX_TRIES):
        workers.fail("a", error=error)
    reason = workers.status.stop_reason
    assert "OSError: no answer of https://host/model " in reason
    assert "hunter" not in reason
    assert len(reason) == 2000
