"""Resizes the running actor pools when nodes join or leave, and when engines starve.

Engines take every free place at once, since they decide what a job costs. The prepare pool grows
only while all of its workers are busy and the engines starve. No pool shrinks while there is work.
When a node leaves, its actors wait for a place, and their rows with them; they get one when a node
joins, or at the end, when other actors have nothing left to do.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ray_cluster.pool_sizes import Capacity

_STEP_S = 1.0
_CAPACITY_S = 5.0  # between two looks at the nodes
_STARVED_S = 8.0  # of starving engines, before the prepare pool grows
_MIN_WAIT_S = 60.0  # Ray itself needs some time to start actors elsewhere
_GROWTH = 1.25  # the factor by which the prepare pool grows at once


@dataclass(frozen=True)
class PoolLimits:
    """The sizes that the job allows one pool; None = no limit. initial: its size at the start."""

    min_size: int | None
    max_size: int | None
    initial: int

    def clamp(self, size: int) -> int:
        """Returns `size` as far as the job allows it; at least 1."""
        return max(self.min_size or 1, min(size, self.max_size or size))


class Autoscaler:
    """Resizes the pools of one execution.

    prepare, generate: part of the operator's name, and the limits of its pool; None: no such stage.
    capacity: returns the capacity of the cluster now.
    wait_s: time to wait for nodes in place of lost ones, while nothing else happens.
    """

    def __init__(
        self,
        prepare: tuple[str, PoolLimits],
        generate: tuple[str, PoolLimits] | None,
        capacity: Callable[[], Capacity],
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        pools = [prepare, generate] if generate else [prepare]
        self._names = [name for name, _ in pools]
        self._limits = [limits for _, limits in pools]
        self._get_capacity, self._wait_s = capacity, max(_MIN_WAIT_S, wait_s)
        self._clock = clock
        self._capacity: Capacity | None = None
        self._next_step = self._next_capacity = self._last_step = 0.0
        self._workers = self._limits[0].initial
        self._starved_s = 0.0
        self._finished_tasks, self._progress_at = -1, 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Resizes the pools, once a second. Raises RunError when nodes are missing for too long."""
        now = self._clock()
        if now < self._next_step:
            return
        elapsed, self._last_step = min(now - self._last_step, 2 * _STEP_S), now
        self._next_step = now + _STEP_S
        operators = _operators(executor, *self._names)
        if operators is None:
            return
        if now >= self._next_capacity:
            self._next_capacity = now + _CAPACITY_S
            self._capacity = self._get_capacity()
        if self._capacity is None:
            return
        change = elapsed if _is_starved(*operators) else -elapsed
        self._starved_s = max(0.0, self._starved_s + change)
        if self._starved_s >= _STARVED_S:
            self._starved_s = 0.0
            self._workers = max(self._workers + 1, math.ceil(self._workers * _GROWTH))
        workers, replicas = self._capacity.workers, self._capacity.replicas
        self._workers = min(self._workers, max(workers, self._limits[0].initial))
        sizes, places = (self._workers, replicas), (workers, replicas)
        for operator, limits, size in zip(operators, self._limits, sizes, strict=False):
            _resize(operator.pool, limits.clamp(size))
        excess = sum(map(_Operator.excess, operators, places))
        tasks = sum(int(operator.metrics.num_tasks_finished) for operator in executor._topology)
        self._check_progress(excess, tasks, now)

    def _check_progress(self, excess: int, finished_tasks: int, now: float) -> None:
        """Raises RunError when no task has finished for long, because nodes are missing.

        excess: actors above the capacity. They wait for a place, or have taken it from Ray's own
        tasks, without which the run cannot go on either.
        """
        if finished_tasks != self._finished_tasks or not excess:
            self._finished_tasks, self._progress_at = finished_tasks, now
        if now - self._progress_at > self._wait_s:
            raise RunError(
                f"the Ray cluster has lost nodes: there is no room for {excess} of the job's "
                f"processes, and no task has finished for {self._wait_s:g} s (resources.wait_s); "
                "finished rows are kept: start the job again, on the nodes that are left or on more"
            )


@dataclass(frozen=True)
class _Operator:
    """An operator of Ray Data with one pool of actors."""

    state: Any
    pool: Any

    def excess(self, capacity: int) -> int:
        """Returns the number of actors that have no place."""
        return max(0, int(self.pool.current_size()) - capacity)


def _operators(executor: Any, *names: str) -> list[_Operator] | None:
    """Returns the operators with these names; None while not all of them exist."""
    topology = getattr(executor, "_topology", None) or {}
    operators = [
        _Operator(state, operator.get_autoscaling_actor_pools()[0])
        for name in names
        for operator, state in topology.items()
        if name in operator.name
    ]
    return operators if len(operators) == len(names) else None


def _resize(pool: Any, size: int) -> None:
    """Sets the minimum size, up to which Ray Data starts actors at once, whatever its own estimate.

    It has no public way to change that.
    """
    size = int(min(size, pool.max_size()))
    if pool.min_size() != size:
        pool._config = replace(pool._config, min_size=size, initial_size=size)


def _is_starved(prepare: _Operator, generate: _Operator | None = None) -> bool:
    """Returns whether every prepare worker is busy, and engines, if any, wait for rows."""
    capacity = prepare.pool.num_alive_actors() * prepare.pool.max_actor_concurrency()
    busy = (
        not prepare.pool.num_pending_actors() and 0 < capacity <= prepare.pool.num_tasks_in_flight()
    )
    if generate is None:
        return busy
    demand = generate.pool.num_alive_actors() * generate.pool.max_actor_concurrency()
    return (
        busy
        and not generate.state.total_enqueued_input_blocks()
        and generate.pool.num_tasks_in_flight() < demand
    )
