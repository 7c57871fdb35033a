"""A run without a generate stage, such as a split: no replica takes room, errors still count."""

import pytest

from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE, FailurePolicy
from mediamill.pipeline.coordinator.quarantine import WorkerId
from mediamill.pipeline.ray_cluster.pool_sizes import Node, capacity, size_pools
from mediamill.schemas.job import Limits, Resources

GIB = 1024**3


@pytest.mark.parametrize("cpus", [2, 8, 64])
def test_the_pools_have_no_replica_and_all_the_room(cpus):
    wanted, nodes = Resources(device="cpu", replicas=1), [Node(cpus, 0, 4 * cpus * GIB)]
    pools = size_pools(wanted, nodes, GIB, generates=False)
    with_engine = size_pools(wanted, nodes, GIB)
    assert (pools.replicas, with_engine.replicas) == (0, 1)
    assert pools.prepare_workers == with_engine.prepare_workers
    assert pools.prepare_cpus >= with_engine.prepare_cpus
    assert capacity(wanted, pools, nodes).replicas == 0
    assert capacity(wanted, pools, nodes).workers >= capacity(wanted, with_engine, nodes).workers


@pytest.mark.parametrize("last_pool", [PREPARE, GENERATE])
def test_the_rows_of_the_last_pool_count_for_the_error_rate(last_pool):
    for pool in (PREPARE, GENERATE):
        limits = Limits(max_error_rate=0.1, error_rate_rows=20)
        policy = FailurePolicy(Resources(), limits, lambda node: True, last_pool)
        worker = WorkerId(pool, "actor", "process", "node")
        rows = [(0, number) for number in range(20)]
        policy.enter(worker)
        policy.begin(worker, rows)
        policy.done(worker, rows, {"fetch_not_found": 5})
        assert policy.begin(worker, rows).stop == (pool == last_pool)
