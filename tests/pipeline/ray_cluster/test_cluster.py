"""Waiting for a cluster that is still coming up."""

import pytest

from mediamill.pipeline.faults import Drained
from mediamill.pipeline.ray_cluster import cluster
from mediamill.pipeline.ray_cluster.pool_sizes import Node, TooSmallError
from mediamill.schemas.job import Resources

GIB = 1024**3
CPU, GPU = Node(8, 0, 32 * GIB), Node(8, 1, 32 * GIB)


@pytest.fixture
def asked(monkeypatch):
    """What is requested of the cluster's autoscaler, which does not exist."""
    found = []
    monkeypatch.setattr(cluster, "_request_nodes", found.append)
    monkeypatch.setattr(cluster, "_WAIT_POLL_S", 0.0)
    return found


def coming(*states):
    """The nodes of one moment after the other; the last state stays."""
    left = list(states)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_a_job_waits_for_its_nodes_and_says_for_which(asked):
    told, wanted = [], Resources(device="cuda", replicas="2..4")
    nodes = coming([], [CPU], [CPU, GPU], [CPU, GPU, GPU])
    pools = cluster.await_pools(wanted, GIB, 60, told.append, nodes)
    assert pools.replicas == 2
    assert len(told) == 3
    assert "no GPU" in told[0]
    assert "resources.replicas: found 2..4, and the Ray cluster has 1 GPUs" in told[2]
    assert asked == [wanted]  # Ray Data goes on asking once it runs


def test_a_job_does_not_wait_for_ever(asked):
    with pytest.raises(TooSmallError, match=r"no GPU.*, after 0.01 s \(resources.wait_s\)"):
        cluster.await_pools(Resources(device="cuda"), GIB, 0.01, lambda _: None, lambda: [CPU])
    assert asked[-1] is None  # nothing is asked for any more


def test_a_cluster_that_cannot_grow_is_not_waited_for(asked):
    with pytest.raises(TooSmallError, match="no GPU"):
        cluster.await_pools(Resources(device="cuda"), GIB, 0, lambda _: None, lambda: [CPU])
    assert asked == []


def test_the_wish_to_stop_ends_the_wait(asked):
    def stop(_missing):
        raise Drained("nothing had begun", None)

    with pytest.raises(Drained):
        cluster.await_pools(Resources(device="cuda"), GIB, 60, stop, lambda: [CPU])
    assert asked[-1] is None
