"""Pool sizes: on every cluster each actor and each task finds a place, in any order."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mediamill.pipeline.ray_cluster.pool_sizes import (
    Capacity,
    Node,
    TooSmallError,
    capacity,
    matches,
    size_pools,
)
from mediamill.schemas.job import Resources
from mediamill.schemas.job_resources import Labels

GIB = 1024**3
HEAD = Node(0, 0, 16 * GIB)  # a head node without CPUs, as in infra/kuberay
BOX = Node(128, 8, 1024 * GIB)
CPU = Node(16, 0, 64 * GIB, {"kind": "cpu"})
GPU = Node(8, 1, 96 * GIB, {"kind": "gpu", "ray.io/accelerator-type": "H100"})


@pytest.mark.parametrize(
    ("wanted", "nodes", "expected"),  # (workers at first, workers at most, replicas)
    [
        ({}, [Node(2, 0, 8 * GIB)], (1, 1, 1)),
        ({}, [Node(8, 0, 32 * GIB)], (2, 2, 1)),
        ({}, [Node(16, 1, 64 * GIB)], (8, 13, 1)),
        ({}, [BOX], (64, 118, 8)),
        ({}, [HEAD, *[CPU] * 4, *[GPU] * 4], (32, 4 * 15 + 4 * 6 - 1, 4)),
        ({"tensor_parallel": 4}, [BOX, GPU], (16, 118 + 7, 2)),
        ({"tensor_parallel": 4}, [BOX, BOX], (32, 118 + 119, 4)),
        ({"tensor_parallel": 3}, [BOX], (16, 120, 2)),
        ({"replicas": "1..2"}, [GPU, GPU, GPU], (16, 17, 2)),
        ({"replicas": 2}, [BOX], (16, 124, 2)),
        ({"device": "cpu"}, [BOX], (32, 32, 1)),
        ({}, [Node(2, 0, 8 * GIB)] * 3, (1, 1, 3)),
        ({"replicas": 2}, [Node(4, 0, 16 * GIB)], (1, 1, 2)),
        ({"prepare_workers": 3}, [Node(2, 0, 8 * GIB)], (3, 3, 1)),
        ({"prepare_workers": "2..5"}, [Node(16, 1, 64 * GIB)], (2, 5, 1)),
        ({"replicas": 2, "tensor_parallel": 2}, [Node(2, 0, 8 * GIB)] * 3, (1, 1, 2)),
    ],
)
def test_sizes(wanted, nodes, expected):
    pools = size_pools(Resources(**wanted), nodes)
    found = capacity(Resources(**wanted), pools, nodes)
    assert (pools.prepare_workers, found.workers, pools.replicas) == expected
    assert pools.ranks == wanted.get("tensor_parallel", 1)
    on_gpu = any(node.gpus for node in nodes) and wanted.get("device") != "cpu"
    assert pools.replica_gpus == (pools.ranks if on_gpu else 0)


@pytest.mark.parametrize(
    ("wanted", "nodes", "sentence"),
    [
        ({}, [], r"\(0 nodes\) has 0 CPUs at most on one node, expected a node with at least 2"),
        ({}, [HEAD], "has 0 CPUs at most on one node, expected a node with at least 2 CPUs"),
        # Two CPUs in sum hold an actor each, and no task of Ray's beside it.
        ({}, [Node(1), Node(1)], r"\(2 nodes\) has 1 CPUs at most on one node"),
        (
            {"replicas": 3},
            [GPU, GPU],
            "resources.replicas: found 3, and the Ray cluster has 2 GPUs on 2 nodes, room for 2 of "
            "1 GPUs each, expected at most 2",
        ),
        ({"replicas": "3..5"}, [GPU, GPU], r"resources.replicas: found 3..5, .* at most 2"),
        (
            {"tensor_parallel": 2},
            [GPU] * 8,
            "resources.tensor_parallel: found 2, and no node of the Ray cluster has more than 1 "
            "GPUs, expected at most 1",
        ),
        ({"device": "cuda"}, [CPU], "resources.device: found cuda, and .* no GPU"),
        (
            {"labels": Labels(generate={"kind": "tpu"})},
            [GPU],
            "resources.labels: generate: no node of the Ray cluster has kind: tpu",
        ),
        ({"prepare_workers": 500}, [Node(2, 0, 8 * GIB)], "resources.prepare_workers: 501 proc"),
    ],
)
def test_clusters_that_are_too_small(wanted, nodes, sentence):
    with pytest.raises(TooSmallError, match=sentence):
        size_pools(Resources(**wanted), nodes)


def test_labels_choose_the_nodes():
    other = Node(8, 4, 96 * GIB, {"ray.io/accelerator-type": "L4"})
    labels = Labels(prepare={"kind": "cpu"}, generate={"ray.io/accelerator-type": "in(H100, H200)"})
    pools = size_pools(Resources(labels=labels), [CPU, GPU, other])
    assert (pools.replicas, pools.prepare_workers) == (1, 8)
    found = capacity(Resources(labels=labels), pools, [CPU, CPU, GPU, GPU, other])
    assert found == Capacity(workers=14 + 15, replicas=2)


def test_forms_of_a_label():
    node = Node(1, labels={"a": "x"})
    yes = [{}, {"a": "x"}, {"a": "in(w, x)"}, {"a": "!y"}, {"a": "!in(y,z)"}, {"b": "!x"}]
    no = [{"a": "y"}, {"a": "!x"}, {"a": "in(y)"}, {"a": "!in(x,y)"}, {"b": "x"}]
    assert all(matches(node, labels) for labels in yes)
    assert not any(matches(node, labels) for labels in no)


def test_memory_limits_the_number_of_automatic_workers():
    node = Node(16, 1, 64 * GIB)
    assert size_pools(Resources(), [node], 10 * GIB).prepare_workers == 6
    wish = size_pools(Resources(prepare_workers=12), [node], 10 * GIB)
    assert wish.prepare_workers == 12
    assert wish.prepare_bytes <= 64 * GIB / 12


def test_capacity_follows_nodes_that_join_and_leave():
    wanted = Resources()
    pools = size_pools(wanted, [HEAD, CPU, GPU])
    rooms = [capacity(wanted, pools, [HEAD, CPU, *[GPU] * count]) for count in (0, 1, 2, 8)]
    assert [one.replicas for one in rooms] == [0, 1, 2, 8]
    assert [one.workers for one in rooms] == sorted(one.workers for one in rooms)
    assert capacity(wanted, pools, [HEAD]) == Capacity(workers=0, replicas=0)


quietly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
counts = st.integers(1, 12)
sizes = (
    st.just("auto") | counts | st.tuples(counts, counts).map(lambda two: f"{min(two)}..{max(two)}")
)
kinds = st.sampled_from([{}, {"kind": "a"}, {"kind": "b"}])
nodes_of = st.lists(
    st.builds(
        Node,
        cpus=st.sampled_from([0.0, 0.5, 1, 2, 3, 4, 8, 17, 64]),
        gpus=st.sampled_from([0.0, 0, 1, 2, 3, 8]),
        memory=st.sampled_from([GIB / 2, 4 * GIB, 31 * GIB, 512 * GIB]),
        labels=kinds,
    ),
    max_size=8,
)
jobs = st.builds(
    Resources,
    replicas=sizes,
    prepare_workers=sizes,
    tensor_parallel=st.sampled_from([1, 2, 4]),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    labels=st.builds(Labels, prepare=kinds, generate=kinds),
)


class Places:
    """The free resources of each node, as Ray counts them; actors go wherever they fit."""

    def __init__(self, nodes: Sequence[Node], seed: int):
        self.free = list(nodes)
        self.random = random.Random(seed)

    def put(self, cpus=0.0, gpus=0.0, memory=0.0, labels=None, fullest=False) -> None:
        fit = [
            number
            for number, node in enumerate(self.free)
            if node.cpus + 1e-6 >= cpus
            and node.gpus >= gpus
            and node.memory >= memory
            and matches(node, labels or {})
        ]
        assert fit, f"no place for {cpus} CPUs, {gpus} GPUs, {memory} bytes in {self.free}"
        number = self.random.choice(fit)
        if fullest:
            number = min(fit, key=lambda number: self.free[number].cpus)
        left = self.free[number]
        self.free[number] = replace(
            left, cpus=left.cpus - cpus, gpus=left.gpus - gpus, memory=left.memory - memory
        )


@quietly
@given(jobs, nodes_of, st.integers(0, 9), st.booleans())
@example(Resources(replicas=4, prepare_workers="1..5"), [Node(3, 0, GIB / 2)], 0, False)
def test_everything_finds_a_place_in_any_order(wanted, nodes, seed, fullest):
    try:
        pools = size_pools(wanted, nodes)
    except TooSmallError:
        return
    workers = {"cpus": pools.prepare_cpus, "memory": pools.prepare_bytes}
    replicas = {"cpus": pools.replica_cpus, "gpus": pools.replica_gpus}
    most = capacity(wanted, pools, nodes)
    for size in (
        Capacity(pools.prepare_workers, pools.replicas),
        Capacity(max(most.workers, pools.prepare_workers), max(most.replicas, pools.replicas)),
    ):
        actors = [{**workers, "labels": wanted.labels.prepare}] * size.workers
        actors += [{**replicas, "labels": wanted.labels.generate}] * size.replicas
        places = Places(nodes, seed)
        places.random.shuffle(actors)
        for actor in actors:
            places.put(**actor, fullest=fullest)
        places.put(cpus=1.0)  # Ray's own task


@quietly
@given(jobs, nodes_of)
def test_the_sizes_of_the_job_are_used(wanted, nodes):
    try:
        pools = size_pools(wanted, nodes)
    except TooSmallError:
        return
    for value, found in (
        (wanted.replicas, pools.replicas),
        (wanted.prepare_workers, pools.prepare_workers),
    ):
        if value != "auto":
            least, _, most = str(value).partition("..")
            assert int(least) <= found <= int(most or least)
    assert pools.engine_threads >= 1
    assert 0 < pools.prepare_cpus <= 1
    if wanted.device == "cpu":
        assert pools.replica_gpus == 0


@quietly
@given(jobs, nodes_of, nodes_of)
def test_more_nodes_never_have_less_capacity(wanted, nodes, more):
    try:
        pools = size_pools(wanted, nodes)
    except TooSmallError:
        return
    before, after = (capacity(wanted, pools, some) for some in (nodes, [*nodes, *more]))
    assert after.replicas >= before.replicas
