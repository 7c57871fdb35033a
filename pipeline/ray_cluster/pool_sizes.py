"""Computes the sizes of the actor pools for a Ray cluster, and what each actor asks Ray for.

Counts node by node, since an actor cannot use free resources of two nodes. Ray places actors and
its own tasks in any order; with these sizes each of them finds a place whatever the order.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mediamill.model.engine_core.default_batch import default_batch_rows
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import Resources
from mediamill.schemas.job_resources import size_range

_TASK_CPUS = 1.0  # of each node, kept free of actors: Ray's repartition tasks ask for a whole one
_IO_TASK_CPUS = 0.5  # of the largest node: for read and write tasks at the same time
_MIN_CPUS = 2  # of a node that holds actors and a task at once
_CPU_FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01)  # that an actor asks for
_LARGE_CLUSTER_CPUS = 8
_PREPARE_BYTES = 2 * 1024**3
_INITIAL_WORKERS = 8  # for each engine on a GPU; the measured rates call for more later
_CPUS_PER_WORKER = 4  # without GPUs decoding is a small part of the work
_BLOCK_BYTES = 32 * 1024**2
# Each object costs time of the driver's scheduling loop, the bottleneck of a large job
# (docs/scale.md).
_MANY_REPLICAS, _LARGE_BLOCK_BYTES = 64, 128 * 1024**2
CALLS_TO_FILL = 4  # concurrent calls that together bring as many rows as the engine's batch


@dataclass(frozen=True)
class Node:
    """The resources of one node that is alive, as Ray reports them. memory: bytes."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pools:
    """The sizes of the pools at the start, and the resources that each actor asks Ray for.

    max_workers, max_replicas: limits when nodes join; None = no limit.
    prepare_cpus, prepare_bytes, replica_cpus, replica_gpus: of one actor.
    ranks: processes of one replica, on one node; on GPUs each has one GPU.
    engine_threads: of each rank on CPUs.
    engine_rows: the batch of one engine. call_rows: of one call to it.
    task_cpus: of a read or write task.
    write_tasks: that run at once; None = Ray decides.
    block_bytes: of one object between the stages.
    """

    prepare_workers: int
    max_workers: int | None
    prepare_cpus: float
    prepare_bytes: int
    replicas: int
    max_replicas: int | None
    replica_cpus: float
    replica_gpus: int
    ranks: int
    engine_threads: int
    engine_rows: int
    call_rows: int
    task_cpus: float
    write_tasks: int | None
    block_bytes: int


@dataclass(frozen=True)
class Capacity:
    """The largest sizes of the pools on the current nodes."""

    workers: int
    replicas: int


class TooSmallError(JobError):
    """The cluster is too small for the job. That may change when nodes join."""


def size_pools(
    resources: Resources,
    nodes: Sequence[Node],
    prepare_bytes: int = _PREPARE_BYTES,
    generates: bool = True,
) -> Pools:
    """Returns the pools for a job on these nodes.

    All GPUs of a replica are on one node. Every node keeps a CPU free of actors, so that Ray's own
    tasks run; on small nodes actors ask for less CPU and memory than they use.

    prepare_bytes: that one prepare actor may need.
    generates: False for a run without replicas.
    Raises TooSmallError.
    """
    cluster = _Cluster.of(resources, nodes)
    replicas = cluster.replicas(resources) if generates else 0
    ranks = resources.tensor_parallel
    initial, maximum = size_range(resources.prepare_workers)
    most_workers = cluster.max_workers(replicas, ranks, prepare_bytes)
    workers = initial
    if workers is None:
        workers = min(most_workers, _INITIAL_WORKERS * replicas) if cluster.on_gpu else most_workers
    actors = workers + (0 if cluster.on_gpu else replicas)
    fraction = cluster.cpu_fraction(actors, "replicas" if initial is None else "prepare_workers")
    rows = resources.batch_rows
    rows = default_batch_rows(cluster.on_gpu) if rows == "auto" else rows
    is_large = sum(node.cpus for node in nodes) >= _LARGE_CLUSTER_CPUS
    return Pools(
        prepare_workers=workers,
        max_workers=maximum,
        prepare_cpus=fraction,
        prepare_bytes=cluster.bytes_each(actors, fraction, prepare_bytes),
        replicas=replicas,
        max_replicas=size_range(resources.replicas)[1],
        # Asks for no CPU on a GPU node: prepare actors could take it before the replica is placed.
        replica_cpus=0 if cluster.on_gpu else fraction,
        replica_gpus=ranks if cluster.on_gpu else 0,
        ranks=ranks,
        engine_threads=cluster.threads(initial or most_workers, replicas, ranks),
        engine_rows=rows,
        call_rows=-(-rows // CALLS_TO_FILL),
        task_cpus=0.5 if is_large else 0.25,
        # Each concurrent one starts a process, which is slow on a small machine.
        write_tasks=None if is_large else 1,
        block_bytes=_BLOCK_BYTES if replicas < _MANY_REPLICAS else _LARGE_BLOCK_BYTES,
    )


def capacity(resources: Resources, pools: Pools, nodes: Sequence[Node]) -> Capacity:
    """Returns the largest sizes of running pools on these nodes, within the job's limits.

    0 when no actor of the pool has a place.
    """
    on_gpu = pools.replica_gpus > 0
    cluster = _Cluster.on_nodes(resources, nodes, on_gpu)
    generates = pools.replicas > 0
    replicas = cluster.max_replicas(pools.ranks) if generates else 0
    replicas = min(replicas, pools.max_replicas or replicas)
    workers = cluster.places(cluster.prepare, pools.prepare_cpus, pools.prepare_bytes)
    if generates and not on_gpu:
        workers -= max(replicas, size_range(resources.replicas)[0] or 0)
    if size_range(resources.prepare_workers)[0] is None:
        workers = min(workers, cluster.max_workers(replicas, pools.ranks, pools.prepare_bytes))
    return Capacity(max(0, min(workers, pools.max_workers or workers)), replicas)


@dataclass(frozen=True)
class _Cluster:
    """The nodes that the actors of each pool may run on, each with its CPUs for actors."""

    prepare: Sequence[tuple[Node, float]]
    generate: Sequence[tuple[Node, float]]
    on_gpu: bool

    @classmethod
    def of(cls, resources: Resources, nodes: Sequence[Node]) -> "_Cluster":
        """Decides between GPUs and CPUs. Raises TooSmallError when no node is suitable."""
        generate = [node for node in nodes if matches(node, resources.labels.generate)]
        gpus = any(node.gpus >= 1 for node in generate)
        if resources.device == "cuda" and not gpus:
            raise TooSmallError(
                f"resources.device: found cuda, and {_cluster_has(generate)} no GPU, expected "
                "nodes that have some, or device: cpu"
            )
        cluster = cls.on_nodes(resources, nodes, gpus and resources.device != "cpu")
        for pool, suitable in (("prepare", cluster.prepare), ("generate", cluster.generate)):
            labels = getattr(resources.labels, pool)
            if labels and not suitable:
                text = ", ".join(f"{name}: {value}" for name, value in labels.items())
                raise TooSmallError(
                    f"resources.labels: {pool}: no node of the Ray cluster has {text}, expected at "
                    "least one"
                )
        if not any(cpus > 0 for _, cpus in cluster.prepare):
            raise TooSmallError(
                f"{_cluster_has(cluster.prepare)} "
                f"{max((node.cpus for node, _ in cluster.prepare), default=0):g} CPUs at most on "
                f"one node, expected a node with at least {_MIN_CPUS} CPUs: Ray's tasks need one "
                "too"
            )
        return cluster

    @classmethod
    def on_nodes(cls, resources: Resources, nodes: Sequence[Node], on_gpu: bool) -> "_Cluster":
        largest = max(range(len(nodes)), key=lambda number: nodes[number].cpus, default=0)
        free = [
            max(0.0, node.cpus - _TASK_CPUS - (_IO_TASK_CPUS if number == largest else 0))
            for number, node in enumerate(nodes)
        ]
        prepare, generate = (
            [(node, cpus) for node, cpus in zip(nodes, free, strict=True) if matches(node, labels)]
            for labels in (resources.labels.prepare, resources.labels.generate)
        )
        return cls(prepare, generate, on_gpu)

    def replicas(self, resources: Resources) -> int:
        """Returns the initial number of replicas. Raises TooSmallError."""
        minimum, maximum = size_range(resources.replicas)
        ranks = resources.tensor_parallel
        available = self.max_replicas(ranks)
        if not self.on_gpu:
            return max(minimum or 1, min(available, maximum or available))
        if available < (minimum or 1):
            gpus = [node.gpus for node, _ in self.generate if node.gpus >= 1]
            if available == 0:
                raise TooSmallError(
                    f"resources.tensor_parallel: found {ranks}, and no node of the Ray cluster has "
                    f"more than {max(gpus):g} GPUs, expected at most {max(gpus):g}"
                )
            raise TooSmallError(
                f"resources.replicas: found {resources.replicas}, and the Ray cluster has "
                f"{sum(gpus):g} GPUs on {len(gpus)} nodes, room for {available} of "
                f"{ranks} GPUs each, expected at most {available}"
            )
        return min(available, maximum or available)

    def max_replicas(self, ranks: int) -> int:
        """Returns how many replicas the nodes have room for; on CPUs one for each node."""
        if self.on_gpu:
            return sum(int(node.gpus // ranks) for node, _ in self.generate)
        return sum(cpus > 0 for _, cpus in self.generate)

    def max_workers(self, replicas: int, ranks: int, each_bytes: int) -> int:
        """Returns the largest useful number of prepare workers, at least 1.

        On GPUs, where engines wait for them, it is all CPUs but one for each rank.
        """
        if not self.on_gpu:
            return max(1, int(sum(node.cpus for node, _ in self.prepare)) // _CPUS_PER_WORKER)
        hosts = {id(node) for node, _ in self.generate}
        workers = 0
        for node, cpus in self.prepare:
            engines = min(int(node.gpus // ranks), replicas) if id(node) in hosts else 0
            by_cpu = int(cpus - engines * ranks)
            by_memory = int(node.memory // each_bytes) if node.memory else by_cpu
            workers += max(0, min(by_cpu, by_memory))
        return max(1, workers)

    def cpu_fraction(self, actors: int, key: str) -> float:
        """Returns the CPUs that each actor asks for, so that all fit. Raises TooSmallError."""
        pools = [self.prepare] if self.on_gpu else [self.prepare, self.generate]
        for fraction in _CPU_FRACTIONS:
            if all(self.places(nodes, fraction, 0) >= actors for nodes in pools):
                return fraction
        maximum = min(self.places(nodes, _CPU_FRACTIONS[-1], 0) for nodes in pools)
        raise TooSmallError(
            f"resources.{key}: {actors} processes are too many for the Ray cluster's CPUs, "
            f"expected at most {maximum} in both pools together"
        )

    def bytes_each(self, actors: int, fraction: float, needed: int) -> int:
        """Returns the memory that a prepare actor asks for: `needed`, halved until all of them fit.

        0 when the nodes report no memory.
        """
        if not any(node.memory for node, _ in self.prepare):
            return 0
        size = needed
        while size > 1 and self.places(self.prepare, fraction, size) < actors:
            size //= 2
        return size

    @staticmethod
    def places(nodes: Sequence[tuple[Node, float]], fraction: float, each_bytes: int) -> int:
        """Returns the number of actors that fit, in whatever order they are placed."""
        places = 0
        for node, cpus in nodes:
            by_cpu = math.floor(cpus / fraction + 1e-9)
            places += min(by_cpu, int(node.memory // each_bytes)) if each_bytes else by_cpu
        return places

    def threads(self, workers: int, replicas: int, ranks: int) -> int:
        """Returns the CPU threads of each rank: a node's CPUs, less one for each prepare worker."""
        hosts = [
            node
            for node, _ in self.generate
            if node.cpus >= _MIN_CPUS and (node.gpus >= ranks or not self.on_gpu)
        ]
        if not hosts:
            return 1
        beside = math.ceil(workers / max(1, sum(cpus > 0 for _, cpus in self.prepare)))
        engines = math.ceil(max(1, replicas) / len(hosts))
        return max(1, int(min(node.cpus for node in hosts) - beside) // (engines * ranks))


def matches(node: Node, labels: Mapping[str, str]) -> bool:
    """Returns whether a node matches Ray label selectors: `a`, `!a`, `in(a,b)` or `!in(a,b)`."""
    for name, selector in labels.items():
        negative, text = selector.startswith("!"), selector.removeprefix("!")
        listed = re.fullmatch(r"in\((.*)\)", text)
        values = [value.strip() for value in listed[1].split(",")] if listed else [text]
        if (node.labels.get(name) in values) == negative:
            return False
    return True


def _cluster_has(nodes: Sequence[object]) -> str:
    return f"the Ray cluster ({len(nodes)} nodes) has"
