"""Models a large run in numbers: its size, the cost of each serial part, and its limits.

Each cost names its source: "here" = CPU seconds on two shared cores of an AMD Zen 4 server, by the
named program; "source" = read in Ray 2.60; "published" = figures of others for their hardware;
"guess" = none of these.
"""

from dataclasses import dataclass
from math import ceil

PREPARE_CALLS, GENERATE_CALLS = 2, 8  # concurrent calls of one actor, see pipeline/run.py
PREPARE_IN_FLIGHT, GENERATE_IN_FLIGHT = 4, 16  # tasks that Ray Data has at one actor (source)
_READERS = 16  # of the plan, see pipeline/manifest/manifest.py


@dataclass(frozen=True)
class Cluster:
    """A run on a cluster.

    row_rate: rows a second of one replica.
    prepare_row_s: CPU seconds of a worker for a row.
    fetch_s: until the media of a call have arrived, without decoding.
    call_rows: of one call of a replica, whose engine holds engine_rows at once.
    rows_per_file: also of a write task.
    folders: of the output, into which the rows of one write task fall.
    row_bytes: of the patches of a row.
    piece_bytes: size from which Ray Data splits a block; 0 = as pipeline/ray_cluster/pool_sizes.py.
    nodes: raylets, each with an object store of store_bytes.
    request_s: of one request to the object store.
    prefixes: of the media, each with a request rate of its own.
    manifest_files: all new.
    """

    rows: int = 1_000_000_000
    replicas: int = 512
    workers: int = 10_000
    row_rate: float = 20.0
    prepare_row_s: float = 0.05
    fetch_s: float = 0.5
    call_rows: int = 64
    engine_rows: int = 256
    rows_per_file: int = 4096
    folders: int = 1
    row_bytes: int = 2_360_000
    piece_bytes: int = 0
    nodes: int = 128
    store_bytes: int = 150 * 10**9
    request_s: float = 0.05
    prefixes: int = 16
    manifest_files: int = 10_000

    @property
    def actors(self) -> int:
        return self.replicas + self.workers

    @property
    def block_bytes(self) -> int:
        return self.call_rows * self.row_bytes

    @property
    def pieces(self) -> int:
        """The objects in which Ray Data keeps the result of one call of prepare."""
        few, many = 32 * 2**20, 128 * 2**20  # see pipeline/ray_cluster/pool_sizes.py
        whole = self.piece_bytes or (few if self.replicas < 64 else many)
        return ceil(self.block_bytes / whole)

    @property
    def slots(self) -> int:
        """The calls that one engine works on at once."""
        return max(1, self.engine_rows // self.call_rows)

    @property
    def engine_s(self) -> float:
        """Seconds of one call in an engine, while all of its slots are used."""
        return self.slots * self.call_rows / self.row_rate


@dataclass(frozen=True)
class Costs:
    """Seconds, bytes where the name says so, and counts of requests.

    The driver's scheduling thread:
    loop_block: a block on its way through all stages (here, scale_driver).
    loop_piece: each further object of a block (here, scale_driver).
    loop_actor: each actor in each step (here, scale_actors).
    loop_usage: each actor for each task that begins (here, scale_actors).
    loop_task: each task in flight in each step (here, scale_actors).
    loop_step: a step (guess).
    loop_wait: the wait for tasks in a step (source).
    loop_tasks: tasks of one block (source).

    The coordinator, whose keys of `--cost` have its old name:
    desk_begin, desk_done, desk_add: a call (here, scale_coordinator).
    desk_row: each row of a call (here, scale_coordinator).
    desk_commit: a write task, without its requests (here, scale_coordinator).
    desk_adds: calls for a block: two counts, and the utilization of its actors, reported every
        16 s at most (source, for calls of some seconds).
    snapshot: the time that commits wait for one, of a billion rows (0.3 here; the request: guess).
    snapshot_records: between two snapshots (source).

    Ray's control service:
    gcs_block: a block (here, scale_driver).
    register: an actor (published; here less, scale_actors).

    Memory:
    driver_actor_bytes, gcs_actor_bytes: each actor (here, scale_actors).
    desk_row_bytes: each row in flight (here, scale_coordinator).

    The object store:
    file_requests: of the plan, for a manifest file (here, scale_requests).
    task_requests: for a write task (here, scale_requests).
    group_requests: for a visible file, without its parts (here, scale_requests).
    media_requests: for a medium (here, scale_requests).
    media_rate: requests a second of a prefix (published by Amazon).

    plan_row: a row of the plan (here, scale_plan).
    store_share: of the object stores that Ray Data uses (source).
    """

    loop_block: float = 0.006
    loop_piece: float = 0.0015
    loop_actor: float = 5.8e-6
    loop_usage: float = 3.4e-8
    loop_task: float = 2.2e-6
    loop_step: float = 0.002
    loop_wait: float = 0.1
    loop_tasks: float = 2.0
    desk_begin: float = 0.0006
    desk_done: float = 0.00053
    desk_add: float = 0.00047
    desk_adds: float = 3
    desk_row: float = 1.7e-6
    desk_commit: float = 0.0025
    snapshot: float = 2.0
    snapshot_records: float = 4096
    gcs_block: float = 0.0003
    register: float = 1 / 390
    driver_actor_bytes: float = 52 * 1024
    gcs_actor_bytes: float = 58 * 1024
    desk_row_bytes: float = 170
    file_requests: float = 5
    task_requests: float = 3
    group_requests: float = 3
    media_requests: float = 1
    media_rate: float = 5500
    plan_row: float = 0.5e-6
    store_share: float = 0.5

    def loop(self, cluster: Cluster) -> float:
        """Seconds of the scheduling thread for one block."""
        pieces = (cluster.pieces - 1) * self.loop_piece
        return self.loop_block + pieces + self.loop_tasks * self.loop_usage * cluster.actors

    def step(self, cluster: Cluster, tasks: float) -> float:
        """Seconds of the scheduling thread for a step with `tasks` in flight, without blocks."""
        return self.loop_step + self.loop_actor * cluster.actors + self.loop_task * tasks

    def begin(self, cluster: Cluster) -> float:
        return self.desk_begin + self.desk_row * cluster.call_rows

    def done(self, cluster: Cluster) -> float:
        """Seconds of `done`, with one pool's counts."""
        adds = self.desk_adds / 2 * self.desk_add
        return self.desk_done + self.desk_row * cluster.call_rows + adds

    def coordinator(self, cluster: Cluster) -> float:
        """Seconds of the coordinator for a block in both pools, with its share of a commit."""
        share = cluster.call_rows / cluster.rows_per_file
        return 2 * (self.begin(cluster) + self.done(cluster)) + share * self.desk_commit


@dataclass(frozen=True)
class Bound:
    """A part of the run that can be the bottleneck.

    rows_s: its limit. setting: what changes it.
    """

    name: str
    rows_s: float
    setting: str


def bounds(cluster: Cluster, costs: Costs) -> list[Bound]:
    """Returns the limit of each part, the lowest first."""
    rows, media_rows = cluster.call_rows, cluster.prefixes * costs.media_rate
    found = [
        Bound("replicas", cluster.replicas * cluster.row_rate, "resources.replicas"),
        Bound("workers", _workers(cluster), "resources.prepare_workers"),
        Bound("loop", _loop(cluster, costs), "resources.batch_rows, fewer workers, several jobs"),
        Bound("desk", rows / costs.coordinator(cluster), "resources.batch_rows, several jobs"),
        Bound("gcs", rows / costs.gcs_block, "resources.batch_rows"),
        Bound("log", _log(cluster, costs), "rows_per_file"),
        Bound("stores", _stores(cluster, costs), "memory of the nodes, image.max_pixels"),
        Bound("media", media_rows / costs.media_requests, "prefixes of the media"),
    ]
    return sorted(found, key=lambda bound: bound.rows_s)


def _workers(cluster: Cluster) -> float:
    """A worker has two calls: one decodes while the other waits for its media."""
    decode = cluster.call_rows * cluster.prepare_row_s
    each = max(decode, (decode + cluster.fetch_s) / PREPARE_CALLS)
    return cluster.workers * cluster.call_rows / each if each else float("inf")


def _loop(cluster: Cluster, costs: Costs) -> float:
    """A step waits and checks all actors, for any number of blocks.

    The best case is as many blocks as Ray Data has in flight at the replicas.
    """
    blocks = cluster.replicas * GENERATE_IN_FLIGHT
    step = costs.loop_wait + costs.step(cluster, blocks)
    return blocks * cluster.call_rows / (step + blocks * costs.loop(cluster))


def _log(cluster: Cluster, costs: Costs) -> float:
    """Waiting commits share one record, so its request is no limit.

    The coordinator's work on each commit is one, and so are snapshots, for which all commits wait.
    """
    snapshot = costs.snapshot / costs.snapshot_records
    return cluster.rows_per_file / (costs.desk_commit + snapshot)


def _stores(cluster: Cluster, costs: Costs) -> float:
    """A row's patches are in a store until its engine has finished it."""
    stay = cluster.engine_s * (1 + 1 / cluster.slots)
    room = costs.store_share * cluster.nodes * cluster.store_bytes
    return room / (cluster.row_bytes * stay)


@dataclass(frozen=True)
class Start:
    """Seconds until rows flow, without loading weights. The phases follow one another."""

    listing_s: float
    ids_s: float
    actors_s: float
    desk_s: float

    @property
    def seconds(self) -> float:
        return self.listing_s + self.ids_s + self.actors_s + self.desk_s


def start(cluster: Cluster, costs: Costs) -> Start:
    """Returns the times of a first run, whose manifest is all new."""
    requests = cluster.manifest_files * costs.file_requests
    return Start(
        requests * cluster.request_s / _READERS,
        cluster.rows * costs.plan_row,
        cluster.actors * costs.register,
        cluster.actors * (costs.desk_begin + costs.desk_done),
    )


def memory(cluster: Cluster, costs: Costs) -> dict[str, float]:
    """Returns the bytes of the processes that exist once."""
    calls = cluster.workers * PREPARE_CALLS + cluster.replicas * GENERATE_CALLS
    return {
        "driver": cluster.actors * costs.driver_actor_bytes,
        "control service": cluster.actors * costs.gcs_actor_bytes,
        "desk": calls * cluster.call_rows * costs.desk_row_bytes + cluster.rows / 8,
    }


def requests(cluster: Cluster, costs: Costs, rows_s: float) -> dict[str, float]:
    """Returns the requests a second to the object store."""
    tasks = rows_s / cluster.rows_per_file
    return {
        "media": rows_s * costs.media_requests,
        "staged and visible files": tasks * (costs.task_requests + costs.group_requests),
        "parts": tasks * cluster.folders,
    }
