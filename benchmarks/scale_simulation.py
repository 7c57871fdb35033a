"""Simulates a run on a Cluster with given Costs, by discrete events.

The unit is a block, the rows of one call. The driver's loop begins a call of prepare, which tells
the coordinator, fetches and decodes. The loop notices its end and begins a call of generate, which
tells the coordinator and waits for the engine. The loop collects blocks for a write task, which the
ledger commits. The loop, the coordinator and the ledger's log are serial; workers and engines are
many. Ray's limits apply: tasks in flight at one actor, and bytes in the object stores.

The actors of a pool share one queue, so imbalance is not simulated. Neither are faults.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np

from benchmarks.scale_model import (
    GENERATE_CALLS,
    GENERATE_IN_FLIGHT,
    PREPARE_CALLS,
    PREPARE_IN_FLIGHT,
    Cluster,
    Costs,
)

_QUEUED_BLOCKS = 512  # that Ray reads ahead
BUSY = 0.9  # share of its time or space above which a part can be the bottleneck


@dataclass(frozen=True)
class Found:
    """The figures of the time after the start.

    rows_s: written rows a second. used: the busy share of each part. waiting: the mean number of
    blocks in front of each. step_s: mean seconds of a step of the loop.
    """

    rows_s: float
    used: dict[str, float]
    waiting: dict[str, float]
    step_s: float

    @property
    def binds(self) -> str:
        """The bottleneck; "nothing" if no part is busy.

        If the replicas are busy, it is the replicas: the parts before them then work ahead and are
        full. Otherwise it is the busiest part.
        """
        name = max(self.used, key=lambda one: (one == "replicas") + self.used[one])
        if self.used[name] <= BUSY:
            name = max(self.used, key=lambda one: self.used[one])
        return name if self.used[name] > BUSY else "nothing"


class _Level:
    """A number over time, and its average."""

    def __init__(self) -> None:
        self.now = 0.0
        self._area = self._since = 0.0

    def add(self, time: float, change: float) -> None:
        self._area += self.now * (time - self._since)
        self._since = time
        self.now += change

    def forget(self, time: float) -> None:
        self.add(time, 0)
        self._area = 0.0

    def area(self, time: float) -> float:
        self.add(time, 0)
        return self._area


class _Serial:
    """A server that does one thing after the other, in order of arrival."""

    def __init__(self, clock: "Simulation") -> None:
        self._clock = clock
        self._free = self._asked = 0.0

    def work(self, seconds: float) -> float:
        """Returns when the work will be done."""
        self._free = max(self._free, self._clock.now) + seconds
        self._asked += seconds
        return self._free

    @property
    def busy_s(self) -> float:
        """Busy seconds so far, without work that waits."""
        return self._asked - max(0.0, self._free - self._clock.now)


class _Pool:
    """The calls of many actors: `calls` at once, of which `servers` work."""

    def __init__(
        self,
        clock: "Simulation",
        calls: int,
        servers: int,
        before_s: float,
        service: Callable[[], float],
        done: Callable[[], None],
    ) -> None:
        self._clock, self._before_s, self._service, self._done = clock, before_s, service, done
        self._calls, self.servers = calls, servers
        self.in_flight = self._queued = 0
        self._waiting = 0
        self.queue, self.working = _Level(), _Level()

    def begin(self) -> None:
        """Begins a task for the loop; its block waits at the actor."""
        self.in_flight += 1
        self._queued += 1
        self.queue.add(self._clock.now, 1)
        self._enter()

    def _enter(self) -> None:
        while self._queued and self._calls:
            self._queued -= 1
            self._calls -= 1
            reported = self._clock.call_coordinator(self._clock.costs.begin(self._clock.cluster))
            self._clock.at(reported + self._before_s, self._ask)

    def _ask(self) -> None:
        self._waiting += 1
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self.working.now < self.servers:
            self._waiting -= 1
            self.queue.add(self._clock.now, -1)
            self.working.add(self._clock.now, 1)
            self._clock.at(self._clock.now + self._service(), self._end)

    def _end(self) -> None:
        clock = self._clock
        self.working.add(clock.now, -1)
        self._calls += 1
        self.in_flight -= 1
        clock.call_coordinator(clock.costs.done(clock.cluster))
        self._done()
        self._serve()
        self._enter()


class Simulation:
    """One run. spread: the standard deviation of call times divided by their mean."""

    def __init__(self, cluster: Cluster, costs: Costs, seed: int = 0, spread: float = 0.2) -> None:
        self.cluster, self.costs, self.now = cluster, costs, 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._random = np.random.default_rng(seed)
        self._spread = spread
        self._coordinator, self._log = _Serial(self), _Serial(self)
        decode = cluster.call_rows * cluster.prepare_row_s
        self._prepare = _Pool(
            self,
            cluster.workers * PREPARE_CALLS,
            cluster.workers,
            cluster.fetch_s,
            lambda: self._drawn(decode),
            self._prepared,
        )
        self._generate = _Pool(
            self,
            cluster.replicas * GENERATE_CALLS,
            cluster.replicas * cluster.slots,
            0.0,
            lambda: self._drawn(cluster.engine_s),
            self._generated,
        )
        self._store = _Level()
        self._room = costs.store_share * cluster.nodes * cluster.store_bytes
        self._busy = _Level()  # the loop
        self._fresh: Counter[str] = Counter()  # finished tasks that the loop has not noticed
        self._ready: Counter[str] = Counter()  # blocks in front of an operator
        self._writes = 0
        self._asks: deque[int] = deque()
        self._recording = False
        self._rows = 0
        self._steps = 0

    def run(self, seconds: float, start_s: float) -> Found:
        """Simulates until `start_s`, and then the `seconds` that the figures are about."""
        self.at(0.0, self._step)
        self._until(start_s)
        desk, log, rows, steps = self._coordinator.busy_s, self._log.busy_s, self._rows, self._steps
        levels = [self._busy, self._store, self._prepare.working, self._generate.working]
        queues = [self._prepare.queue, self._generate.queue]
        for level in (*levels, *queues):
            level.forget(self.now)
        self._until(start_s + seconds)
        loop, store, workers, engines = (level.area(self.now) / seconds for level in levels)
        return Found(
            rows_s=(self._rows - rows) / seconds,
            used={
                "replicas": engines / self._generate.servers,
                "workers": workers / self._prepare.servers,
                "loop": loop,
                "desk": (self._coordinator.busy_s - desk) / seconds,
                "log": (self._log.busy_s - log) / seconds,
                "stores": store / self._room,
            },
            waiting={
                "prepare": queues[0].area(self.now) / seconds,
                "generate": queues[1].area(self.now) / seconds,
            },
            step_s=seconds / max(1, self._steps - steps),
        )

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), action))

    def call_coordinator(self, seconds: float) -> float:
        return self._coordinator.work(seconds)

    def _until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def _drawn(self, mean: float) -> float:
        if not self._spread or not mean:
            return mean
        shape = 1 / self._spread**2
        return float(self._random.gamma(shape, mean / shape))

    def _prepared(self) -> None:
        self._fresh["prepare"] += 1

    def _generated(self) -> None:
        self._fresh["generate"] += 1
        self._store.add(self.now, -self.cluster.block_bytes)

    # -- the driver's loop

    def _step(self) -> None:
        """Waits for tasks and checks all actors, before it handles finished and new tasks."""
        self._steps += 1
        under_way = self._prepare.in_flight + self._generate.in_flight + self._writes
        wait = self.costs.loop_wait if under_way else 0.0
        self.at(self.now + wait, lambda: self._work(under_way))

    def _work(self, under_way: int) -> None:
        self._busy.add(self.now, 1)
        seconds = self.costs.step(self.cluster, under_way)
        self.at(self.now + seconds, self._hear)

    def _hear(self) -> None:
        self._ready["generate"] += self._fresh.pop("prepare", 0)
        self._ready["write"] += self._fresh.pop("generate", 0)
        self._ready["prepare"] = _QUEUED_BLOCKS
        self._begin_one()

    def _begin_one(self) -> None:
        """Begins one task, the last stage first.

        The loop's time for a block is spread over the tasks of that block.
        """
        rows_per_write = max(1, self.cluster.rows_per_file // self.cluster.call_rows)
        each = self.costs.loop(self.cluster) / self.costs.loop_tasks
        if self._ready["write"] >= rows_per_write:
            self._ready["write"] -= rows_per_write
            self._write(rows_per_write)
            self.at(self.now + each, self._begin_one)
        elif self._ready["generate"] and self._has_room(self._generate, GENERATE_IN_FLIGHT):
            self._ready["generate"] -= 1
            self._generate.begin()
            self.at(self.now + each, self._begin_one)
        elif (
            self._ready["prepare"]
            and self._has_room(self._prepare, PREPARE_IN_FLIGHT)
            and self._store.now + self.cluster.block_bytes <= self._room
        ):
            self._ready["prepare"] -= 1
            self._store.add(self.now, self.cluster.block_bytes)
            self._prepare.begin()
            self.at(self.now + each, self._begin_one)
        else:
            self._busy.add(self.now, -1)
            self._step()

    def _has_room(self, pool: _Pool, in_flight: int) -> bool:
        actors = self.cluster.workers if pool is self._prepare else self.cluster.replicas
        return pool.in_flight < actors * in_flight

    # -- write tasks and the ledger

    def _write(self, blocks: int) -> None:
        """Stages the rows of a write task, and asks the ledger to commit them."""
        self._writes += 1
        self.at(self.now + self.cluster.request_s, lambda: self._ask_ledger(blocks))

    def _ask_ledger(self, blocks: int) -> None:
        self._asks.append(blocks)
        if not self._recording:
            self._record()

    def _record(self) -> None:
        """Writes all waiting commits as one record: the coordinator's work, and one request."""
        self._recording = True
        taken = list(self._asks)
        self._asks.clear()
        ready = self.call_coordinator(self.costs.desk_commit * len(taken))
        self.at(ready, lambda: self._append(taken))

    def _append(self, taken: list[int]) -> None:
        snapshot = self.costs.snapshot / self.costs.snapshot_records
        done = self._log.work(self.cluster.request_s + snapshot)
        self.at(done, lambda: self._recorded(taken))

    def _recorded(self, taken: list[int]) -> None:
        self._recording = False
        for blocks in taken:
            # The parts of a whole file are read and joined, and the file is put.
            after = self.cluster.request_s * self.costs.group_requests
            self._rows += blocks * self.cluster.call_rows
            self.at(self.now + after, self._written)
        if self._asks:
            self._record()

    def _written(self) -> None:
        self._writes -= 1
