"""Turns what the nodes have room for, and who waits for whom, into the sizes of running pools.

Engines take every place that there is, at once: they are what the job is paid for. Processes that
prepare become more only while all of them are busy and the engines starve. Nothing shrinks while
there is work. The actors of a node that goes wait for a place, and their rows with them; they get
one when a node joins, or at the end, when others have nothing left to do. What an actor does, and
how rooms are counted, is not known here.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ray_cluster.pool_sizes import Capacity

_LOOK_S = 1.0
_NODES_S = 5.0
_HUNGRY_S = 8.0  # of starving engines, before more processes prepare
_LEAST_WAIT_S = 60.0  # Ray itself needs some time to start actors elsewhere
_STEP = 1.25  # so many times more, at once


@dataclass(frozen=True)
class Bounds:
    """Of one pool, as the job has it: the least, the most (None = no limit), and the first size."""

    least: int | None
    most: int | None
    first: int

    def fit(self, size: int) -> int:
        """`size`, as far as the job allows it; a pool has one actor at least."""
        return max(self.least or 1, min(size, self.most or size))


class Autoscaler:
    """Ray Data's execution callback: its scheduling loop calls it after each step.

    prepare, generate: parts of the operators' names, and the bounds of their pools; None: there is
    no such stage. room: asked
    now and then; it sees the cluster as it is. wait_s: for nodes in the place of lost ones, while
    nothing else happens.
    """

    def __init__(
        self,
        prepare: tuple[str, Bounds],
        generate: tuple[str, Bounds] | None,
        room: Callable[[], Capacity],
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = [name for name, _ in (prepare, *([generate] if generate else []))]
        self._prepare, self._generate = prepare[1], generate[1] if generate else None
        self._ask_room, self._wait_s, self._clock = room, max(_LEAST_WAIT_S, wait_s), clock
        self._room: Capacity | None = None
        self._next_look = self._next_nodes = self._last_look = 0.0
        self._workers = self._prepare.first
        self._hungry_s = 0.0
        self._finished, self._moved_at = -1, 0.0

    def __call__(self) -> "Autoscaler":
        """Ray Data makes its callbacks by calling what it was given."""
        return self

    def __deepcopy__(self, _memo: object) -> "Autoscaler":
        """Ray Data copies its settings; there is one of these for a pass."""
        return self

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing yet."""

    def on_execution_step(self, executor: Any) -> None:
        """Looks about once a second. Raises RunError when nodes are gone for too long."""
        now = self._clock()
        if now < self._next_look:
            return
        past, self._last_look = min(now - self._last_look, 2 * _LOOK_S), now
        self._next_look = now + _LOOK_S
        stages = _stages(executor, *self._names)
        if stages is None:
            return
        prepare, generate = stages[0], stages[1] if len(stages) > 1 else None
        if now >= self._next_nodes:
            self._next_nodes = now + _NODES_S
            self._room = self._ask_room()
        if self._room is None:
            return
        if generate is not None and self._generate is not None:
            _hold(generate.pool, self._generate.fit(self._room.replicas))
        self._hungry_s = max(0.0, self._hungry_s + (past if _starved(prepare, generate) else -past))
        if self._hungry_s >= _HUNGRY_S:
            self._hungry_s = 0.0
            self._workers = max(self._workers + 1, math.ceil(self._workers * _STEP))
        self._workers = min(self._workers, max(self._room.workers, self._prepare.first))
        _hold(prepare.pool, self._prepare.fit(self._workers))
        finished = sum(int(one.metrics.num_tasks_finished) for one in executor._topology)
        lost = prepare.above(self._room.workers)
        lost += generate.above(self._room.replicas) if generate is not None else 0
        self._mind(lost, finished, now)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing more."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing more."""

    def _mind(self, lost: int, finished: int, now: float) -> None:
        """Raises RunError when nothing has happened for long, for want of nodes.

        lost: actors above what there is room for. They wait for a place, or have taken it from
        Ray's own tasks, without which nothing goes on either.
        """
        if finished != self._finished or not lost:
            self._finished, self._moved_at = finished, now
        if now - self._moved_at > self._wait_s:
            raise RunError(
                f"the Ray cluster has lost nodes: there is no room for {lost} of the job's "
                f"processes, and nothing has moved for {self._wait_s:g} s (resources.wait_s); what "
                "is finished is kept: start the job again, on the nodes that are left or on more"
            )


@dataclass(frozen=True)
class _Stage:
    """An operator of Ray Data with one pool of actors."""

    state: Any
    pool: Any

    def above(self, places: int) -> int:
        """Actors for which there is no place."""
        return max(0, int(self.pool.current_size()) - places)


def _stages(executor: Any, *names: str) -> list[_Stage] | None:
    """The operators with these names; None while there are not all of them."""
    topology = getattr(executor, "_topology", None) or {}
    found = []
    for name in names:
        for operator, state in topology.items():
            if name in operator.name:
                found += [_Stage(state, operator.get_autoscaling_actor_pools()[0])]
    return found if len(found) == len(names) else None


def _hold(pool: Any, size: int) -> None:
    """Lets Ray Data's own autoscaler bring the pool to `size`, and not let it go below.

    It starts what is missing to the least size at once, whatever its own guess is; there is no
    public way to move that size.
    """
    size = int(min(size, pool.max_size()))
    if pool.min_size() != size:
        pool._config = replace(pool._config, min_size=size, initial_size=size)


def _starved(prepare: _Stage, generate: _Stage | None) -> bool:
    """Whether all who prepare are busy, and engines (if any) could take more rows."""
    slots = prepare.pool.num_alive_actors() * prepare.pool.max_actor_concurrency()
    busy = not prepare.pool.num_pending_actors() and 0 < slots <= prepare.pool.num_tasks_in_flight()
    if generate is None:
        return busy
    takers = generate.pool.num_alive_actors() * generate.pool.max_actor_concurrency()
    return (
        busy
        and not generate.state.total_enqueued_input_blocks()
        and generate.pool.num_tasks_in_flight() < takers
    )
