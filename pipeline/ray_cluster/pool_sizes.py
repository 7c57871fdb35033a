"""Turns the nodes of a Ray cluster into the sizes of the actor pools, and what each actor asks for.

Counts node by node, since an actor lives on one: what two nodes have together helps nobody. Ray
places actors and its own tasks in an order that nobody knows; the sizes are such that each finds a
place in any order. Knows neither Ray nor the stages.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mediamill.model.engine_core.default_batch import default_batch_rows
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import Resources
from mediamill.schemas.job_resources import span

_TASK_CPUS = 1.0  # of each node, kept free of actors: Ray's repartition tasks ask for a whole one
_MORE_TASK_CPUS = 0.5  # of the largest node: for what reads and writes meanwhile
_LEAST_CPUS = 2  # of a node that is to hold actors and a task at once
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01)  # of a CPU that an actor asks
_ROOMY_CPUS = 8
_PREPARE_BYTES = 2 * 1024**3
_FIRST_WORKERS = 8  # for each engine on a GPU; measured rates call for more
_CPUS_PER_WORKER = 4  # without GPUs decoding is a small part of the work
_BLOCK_BYTES = 32 * 1024**2
# Each object costs the driver's scheduling loop, which is what binds a large job (docs/scale.md).
_MANY_REPLICAS, _LARGE_BLOCK_BYTES = 64, 128 * 1024**2
CALLS_TO_FILL = 4  # so many callers together bring as many rows as the engine works on


@dataclass(frozen=True)
class Node:
    """What one living node has, as it told Ray. memory: bytes."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pools:
    """Actors of each kind at the start, and what each asks Ray for.

    most_workers, most_replicas: that the pools may grow to when nodes join; None = no limit.
    ranks: processes that share one copy of the model, on one node; on GPUs each has one.
    engine_threads: of each rank on CPUs. engine_rows: that one engine works on at once; call_rows:
    that one of its callers brings. write_tasks: at once; None = as many as Ray finds right.
    block_bytes: of one object between the stages.
    """

    prepare_workers: int
    most_workers: int | None
    prepare_cpus: float
    prepare_bytes: int
    replicas: int
    most_replicas: int | None
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
    """How large the pools may be on the nodes that there are now."""

    workers: int
    replicas: int


class TooSmallError(JobError):
    """The cluster has no room for the job; it may get it when nodes join."""


def size_pools(
    wanted: Resources,
    nodes: Sequence[Node],
    prepare_bytes: int = _PREPARE_BYTES,
    generates: bool = True,
) -> Pools:
    """The pools for a job on these nodes. prepare_bytes: that one prepare actor may need.
    generates: False for a run without replicas.

    A replica of several ranks has all its GPUs on one node. Beside the actors, every node keeps
    a CPU free, so that Ray's own tasks run; on small nodes actors ask for less than they use, and
    for less memory. Raises TooSmallError.
    """
    cluster = _Cluster.of(wanted, nodes)
    replicas, ranks = cluster.replicas(wanted) if generates else 0, wanted.tensor_parallel
    first, most = span(wanted.prepare_workers)
    workers = first if first is not None else cluster.first_workers(replicas, ranks, prepare_bytes)
    actors = workers + (0 if cluster.on_gpu else replicas)
    share = cluster.share(actors, "prepare_workers" if first is not None else "replicas")
    rows = default_batch_rows(cluster.on_gpu) if wanted.batch_rows == "auto" else wanted.batch_rows
    roomy = sum(node.cpus for node in nodes) >= _ROOMY_CPUS
    return Pools(
        prepare_workers=workers,
        most_workers=most,
        prepare_cpus=share,
        prepare_bytes=cluster.bytes_each(actors, share, prepare_bytes),
        replicas=replicas,
        most_replicas=span(wanted.replicas)[1],
        # A share of a CPU could be taken by prepare actors before the replica comes to its GPUs.
        replica_cpus=0 if cluster.on_gpu else share,
        replica_gpus=ranks if cluster.on_gpu else 0,
        ranks=ranks,
        engine_threads=cluster.threads(
            cluster.most_workers(replicas, ranks, prepare_bytes) if first is None else workers,
            replicas,
            ranks,
        ),
        engine_rows=rows,
        call_rows=-(-rows // CALLS_TO_FILL),
        task_cpus=0.5 if roomy else 0.25,
        # Each further one is a process that has to start; a small machine does without.
        write_tasks=None if roomy else 1,
        block_bytes=_BLOCK_BYTES if replicas < _MANY_REPLICAS else _LARGE_BLOCK_BYTES,
    )


def capacity(wanted: Resources, pools: Pools, nodes: Sequence[Node]) -> Capacity:
    """How large pools that have been started may be on the nodes of this moment; 0 = not at all.

    Never more than what the job asks for; less, where nodes have gone.
    """
    on_gpu = pools.replica_gpus > 0
    cluster = _Cluster.found(wanted, nodes, on_gpu)
    generates = pools.replicas > 0
    replicas = cluster.most_replicas(pools.ranks) if generates else 0
    replicas = min(replicas, pools.most_replicas or replicas)
    workers = cluster.slots(cluster.prepare, pools.prepare_cpus, pools.prepare_bytes)
    workers -= max(replicas, span(wanted.replicas)[0] or 0) if generates and not on_gpu else 0
    if span(wanted.prepare_workers)[0] is None:
        workers = min(workers, cluster.most_workers(replicas, pools.ranks, pools.prepare_bytes))
    return Capacity(max(0, min(workers, pools.most_workers or workers)), replicas)


@dataclass(frozen=True)
class _Cluster:
    """The nodes that each kind of actor may live on.

    Each node is (itself, its CPUs for actors).
    """

    prepare: Sequence[tuple[Node, float]]
    generate: Sequence[tuple[Node, float]]
    on_gpu: bool

    @classmethod
    def of(cls, wanted: Resources, nodes: Sequence[Node]) -> "_Cluster":
        """Raises TooSmallError where no node is fit."""
        generate = _with_labels(nodes, wanted.labels.generate)
        gpus = any(node.gpus >= 1 for node in generate)
        if wanted.device == "cuda" and not gpus:
            raise TooSmallError(
                f"resources.device: found cuda, and {_named(generate)} no GPU, expected nodes that "
                "have some, or device: cpu"
            )
        found = cls.found(wanted, nodes, gpus and wanted.device != "cpu")
        for stage, fit in (("prepare", found.prepare), ("generate", found.generate)):
            labels = getattr(wanted.labels, stage)
            if labels and not fit:
                raise TooSmallError(
                    f"resources.labels: {stage}: no node of the Ray cluster has {_shown(labels)}, "
                    "expected at least one"
                )
        if not any(cpus > 0 for _, cpus in found.prepare):
            raise TooSmallError(
                f"{_named([node for node, _ in found.prepare])} "
                f"{max((node.cpus for node, _ in found.prepare), default=0):g} CPUs at most on one "
                f"node, expected a node with at least {_LEAST_CPUS} CPUs: Ray's tasks need one too"
            )
        return found

    @classmethod
    def found(cls, wanted: Resources, nodes: Sequence[Node], on_gpu: bool) -> "_Cluster":
        largest = max(range(len(nodes)), key=lambda number: nodes[number].cpus, default=0)
        free = [
            max(0.0, node.cpus - _TASK_CPUS - (_MORE_TASK_CPUS if number == largest else 0))
            for number, node in enumerate(nodes)
        ]
        prepare, generate = (
            [(node, cpus) for node, cpus in zip(nodes, free, strict=True) if matches(node, labels)]
            for labels in (wanted.labels.prepare, wanted.labels.generate)
        )
        return cls(prepare, generate, on_gpu)

    def replicas(self, wanted: Resources) -> int:
        """How many the job gets at the start. Raises TooSmallError."""
        least, most = span(wanted.replicas)
        ranks = wanted.tensor_parallel
        there = self.most_replicas(ranks)
        if not self.on_gpu:
            return max(least or 1, min(there, most or there))
        if there < (least or 1):
            gpus = [node.gpus for node, _ in self.generate if node.gpus >= 1]
            if there == 0:
                raise TooSmallError(
                    f"resources.tensor_parallel: found {ranks}, and no node of the Ray cluster has "
                    f"more than {max(gpus):g} GPUs, expected at most {max(gpus):g}"
                )
            raise TooSmallError(
                f"resources.replicas: found {wanted.replicas}, and the Ray cluster has "
                f"{sum(gpus):g} GPUs on {len(gpus)} nodes, room for {there} of "
                f"{ranks} GPUs each, expected at most {there}"
            )
        return min(there, most or there)

    def most_replicas(self, ranks: int) -> int:
        """That the nodes have room for; on CPUs one for each node."""
        if self.on_gpu:
            return sum(int(node.gpus // ranks) for node, _ in self.generate)
        return sum(cpus > 0 for _, cpus in self.generate)

    def first_workers(self, replicas: int, ranks: int, each_bytes: int) -> int:
        most = self.most_workers(replicas, ranks, each_bytes)
        return min(most, _FIRST_WORKERS * replicas) if self.on_gpu else most

    def most_workers(self, replicas: int, ranks: int, each_bytes: int) -> int:
        """Processes that prepare, at least one; with GPUs they are what the engines wait for.

        Every rank has a CPU of its own.
        """
        if not self.on_gpu:
            return max(1, int(sum(node.cpus for node, _ in self.prepare)) // _CPUS_PER_WORKER)
        hosts = {id(node) for node, _ in self.generate}
        found = 0
        for node, cpus in self.prepare:
            engines = min(int(node.gpus // ranks), replicas) if id(node) in hosts else 0
            by_cpu = int(cpus - engines * ranks)
            by_memory = int(node.memory // each_bytes) if node.memory else by_cpu
            found += max(0, min(by_cpu, by_memory))
        return max(1, found)

    def share(self, actors: int, key: str) -> float:
        """Of a CPU, that each actor asks for, so that all of them fit. Raises TooSmallError."""
        places = [self.prepare] if self.on_gpu else [self.prepare, self.generate]
        for share in _SHARES:
            if all(self.slots(place, share, 0) >= actors for place in places):
                return share
        most = min(self.slots(place, _SHARES[-1], 0) for place in places)
        raise TooSmallError(
            f"resources.{key}: {actors} processes are too many for the Ray cluster's CPUs, "
            f"expected at most {most} in both pools together"
        )

    def bytes_each(self, actors: int, share: float, wanted: int) -> int:
        """Of memory, that a prepare actor asks for: as wanted, or what is there for each."""
        if not any(node.memory for node, _ in self.prepare):
            return 0
        asked = wanted
        while asked > 1 and self.slots(self.prepare, share, asked) < actors:
            asked //= 2
        return asked

    @staticmethod
    def slots(place: Sequence[tuple[Node, float]], share: float, each_bytes: int) -> int:
        """Actors that find a place whatever the order in which they come.

        An actor without a place means that every node has at least so many already.
        """
        found = 0
        for node, cpus in place:
            by_cpu = math.floor(cpus / share + 1e-9)
            found += min(by_cpu, int(node.memory // each_bytes)) if each_bytes else by_cpu
        return found

    def threads(self, workers: int, replicas: int, ranks: int) -> int:
        """Of each rank, so that those of one node share its CPUs with what prepares there."""
        hosts = [node for node, cpus in self.generate if (node.gpus >= ranks or not self.on_gpu)]
        hosts = [node for node in hosts if node.cpus >= _LEAST_CPUS]
        if not hosts:
            return 1
        beside = math.ceil(workers / max(1, sum(cpus > 0 for _, cpus in self.prepare)))
        engines = math.ceil(max(1, replicas) / len(hosts))
        return max(1, int(min(node.cpus for node in hosts) - beside) // (engines * ranks))


def matches(node: Node, labels: Mapping[str, str]) -> bool:
    """Whether a node has labels, said as Ray's selectors: `a`, `!a`, `in(a,b)` or `!in(a,b)`."""
    for name, said in labels.items():
        negative, text = said.startswith("!"), said.removeprefix("!")
        listed = re.fullmatch(r"in\((.*)\)", text)
        values = [one.strip() for one in listed[1].split(",")] if listed else [text]
        if (node.labels.get(name) in values) == negative:
            return False
    return True


def _with_labels(nodes: Sequence[Node], labels: Mapping[str, str]) -> list[Node]:
    return [node for node in nodes if matches(node, labels)]


def _named(nodes: Sequence[Node]) -> str:
    return f"the Ray cluster ({len(nodes)} nodes) has"


def _shown(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in labels.items())
