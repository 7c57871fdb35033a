"""Waiting for a cluster that is still coming up."""

import pytest

from mediamill.pipeline.faults import Drained
from mediamill.pipeline.ray_cluster import cluster
from mediamill.pipeline.ray_cluster.pool_sizes import Node, TooSmallError
from mediamill.schemas.job import Resources

GIB = 1024**3
CPU, GPU = Node(8, 0, 32 * GIB), Node(8, 1, 32 * GIB)


@pytest.fixture
def requests(monkeypatch):
    """What is requested of the cluster's autoscaler, which does not exist."""
    calls = []
    monkeypatch.setattr(cluster, "_request_nodes", calls.append)
    monkeypatch.setattr(cluster, "_WAIT_POLL_S", 0.0)
    return calls


def coming(*states):
    """Returns these nodes one after the other; the last ones remain."""
    states = list(states)
    return lambda: states.pop(0) if len(states) > 1 else states[0]


def test_a_job_waits_for_its_nodes_and_says_for_which(requests):
    messages, resources = [], Resources(device="cuda", replicas="2..4")
    nodes = coming([], [CPU], [CPU, GPU], [CPU, GPU, GPU])
    pools = cluster.await_pools(resources, GIB, 60, messages.append, nodes)
    assert pools.replicas == 2
    assert len(messages) == 3
    assert "no GPU" in messages[0]
    assert "resources.replicas: found 2..4, and the Ray cluster has 1 GPUs" in messages[2]
    assert requests == [resources]  # Ray Data requests more once it runs


def test_a_job_does_not_wait_for_ever(requests):
    with pytest.raises(TooSmallError, match=r"no GPU.*, after 0.01 s \(resources.wait_s\)"):
        cluster.await_pools(Resources(device="cuda"), GIB, 0.01, lambda _: None, lambda: [CPU])
    assert requests[-1] is None  # the request is withdrawn


def test_a_cluster_that_cannot_grow_is_not_waited_for(requests):
    with pytest.raises(TooSmallError, match="no GPU"):
        cluster.await_pools(Resources(device="cuda"), GIB, 0, lambda _: None, lambda: [CPU])
    assert requests == []


def test_a_stop_request_ends_the_wait(requests):
    def stop(_missing):
        raise Drained("nothing had begun", None)

    with pytest.raises(Drained):
        cluster.await_pools(Resources(device="cuda"), GIB, 60, stop, lambda: [CPU])
    assert requests[-1] is None
