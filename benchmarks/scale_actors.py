"""Measures what many idle actors cost the driver and Ray's control service.

Usage: `python -m benchmarks.scale_actors --actors 1000 10000`. The actors are registered and never
start, since no node has the resources that they ask for: a machine of two cores can hold that many.
So only serial parts are measured, which more nodes do not share: registering actors, their memory
in the driver and in the control service, and what Ray Data's pool does with each of them in every
step of its scheduling loop; also `ray.wait` on tasks in flight. Starting processes is not measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scale_driver import ROOT, cpu_s, machine_ms, start_ray
from tests import processes

REPEATS = 15
NODE_ACTORS = 150  # on one node, as the pool sees them
COLUMNS = (
    ("actors", "{:>7,}"),
    ("register_ms", "{:>12.2f}"),
    ("gcs_ms", "{:>7.2f}"),
    ("driver_kib", "{:>11.1f}"),
    ("gcs_kib", "{:>8.1f}"),
    ("refresh_ms", "{:>11.2f}"),
    ("locations_ms", "{:>13.1f}"),
    ("usage_ms", "{:>9.3f}"),
    ("choose_ms", "{:>10.3f}"),
    ("wait_ms", "{:>8.1f}"),
)


def measure(actors: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale_actors", "--child", str(actors)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {"actors": actors, **json.loads(done.stdout.splitlines()[-1])}


def child(actors: int) -> dict[str, float]:
    """Returns the figures. register_ms, gcs_ms, driver_kib and gcs_kib are for each actor.

    refresh_ms: the pool checks all of its actors, in each step of the loop.
    locations_ms: it asks for their nodes, once a second.
    usage_ms: it counts them, for each task that begins.
    choose_ms: it chooses the actor of a task.
    wait_ms: `ray.wait` on four tasks of each actor, none of them ready, without its timeout.
    """
    import ray

    start_ray(2)
    gcs = next(
        pid for pid in processes.descendants(os.getpid()) if "gcs_server" in processes.title(pid)
    )
    handles, figures = _registered(actors, gcs)
    figures |= _pool_costs(handles)
    figures["wait_ms"] = _wait_ms(4 * actors)
    del handles
    ray.shutdown()
    return figures


def _registered(actors: int, gcs: int) -> tuple[list[Any], dict[str, float]]:
    import ray

    @ray.remote(num_cpus=0, resources={"nowhere": 1}, max_restarts=-1)
    class Idle:
        pass

    handles = [Idle.remote()]  # pays the cost of a first actor
    time.sleep(2)
    memory = [processes.memory(pid, "RssAnon") for pid in (os.getpid(), gcs)]
    used = [time.process_time(), cpu_s(Path(f"/proc/{gcs}"))]
    handles += [Idle.remote() for _ in range(actors)]
    _until_quiet(gcs)
    grown = [
        processes.memory(pid, "RssAnon") - before
        for pid, before in zip((os.getpid(), gcs), memory, strict=True)
    ]
    return handles[1:], {
        "register_ms": 1000 * (time.process_time() - used[0]) / actors,
        "gcs_ms": 1000 * (cpu_s(Path(f"/proc/{gcs}")) - used[1]) / actors,
        "driver_kib": grown[0] / 1024 / actors,
        "gcs_kib": grown[1] / 1024 / actors,
    }


def _until_quiet(pid: int) -> None:
    """Waits until a process uses less than a tenth of a core."""
    before = cpu_s(Path(f"/proc/{pid}"))
    for _ in range(60):
        time.sleep(1)
        now = cpu_s(Path(f"/proc/{pid}"))
        if now - before < 0.1:
            return
        before = now


class _Handle:
    """A real actor handle for Ray Data's pool, which believes that its actor is alive."""

    def __init__(self, real: Any, alive: Any) -> None:
        self._real, self._alive = real, alive

    def __hash__(self) -> int:
        return hash(self._real)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handle) and self._real == other._real

    def _get_local_state(self) -> Any:
        self._real._get_local_state()
        return self._alive


def _pool_costs(handles: Sequence[Any]) -> dict[str, float]:
    import ray
    from ray.data._internal.actor_autoscaler import ActorPoolScalingRequest
    from ray.data._internal.actor_autoscaler.autoscaling_actor_pool import AutoscalingActorConfig
    from ray.data._internal.execution.interfaces import ExecutionResources
    from ray.data._internal.execution.operators import actor_pool_map_operator as operator
    from ray.data._internal.utils import cached_ray_internals as cached

    node = ray.get_runtime_context().get_node_id()
    usage = ExecutionResources(cpu=1)
    waiting = iter(handles)
    places = iter(range(len(handles)))

    def create(labels: Any, logical_id: Any) -> tuple[Any, Any, Any]:
        handle = _Handle(next(waiting), operator._ACTOR_STATE_ALIVE)
        return handle, ray.put(f"{node[:-4]}{next(places) // NODE_ACTORS:04}"), usage

    config = AutoscalingActorConfig(
        min_size=len(handles),
        max_size=len(handles),
        initial_size=len(handles),
        max_tasks_in_flight_per_actor=4,
        max_actor_concurrency=2,
        per_actor_resource_usage=usage,
    )
    pool = operator._NodeAwareActorPool(create, config)
    pool.scale(ActorPoolScalingRequest(delta=len(handles), reason="measured"))
    for ref in pool.get_pending_actor_refs():
        pool.pending_to_running(ref)
    ids = tuple(pool._get_logical_ids())
    tracker = cached.get_or_create_actor_location_tracker()

    def locations() -> None:
        ray.get(tracker.get_actor_locations.remote(ids))

    def choose() -> None:
        actor = pool.select_actors(bundle=None)
        pool.on_task_submitted(actor)
        pool.on_task_completed(actor)

    locations()
    return {
        "locations_ms": _median_ms(locations),
        "refresh_ms": _median_ms(pool.refresh_actor_state),
        # As ActorPoolMapOperator.extra_resource_usage does.
        "usage_ms": _median_ms(lambda: set() - set(pool._get_logical_ids())),
        "choose_ms": _median_ms(choose),
    }


def _median_ms(action: Callable[[], Any]) -> float:
    """Returns the CPU time of this thread, so other load does not count."""
    found = []
    for _ in range(REPEATS):
        started = time.thread_time()
        action()
        found.append(time.thread_time() - started)
    return 1000 * statistics.median(found)


def _wait_ms(tasks: int) -> float:
    import ray

    @ray.remote(num_cpus=0)
    class Slow:
        def work(self) -> Any:
            time.sleep(3600)
            yield 1

    slow = Slow.remote()
    refs = [slow.work.options(num_returns="streaming").remote() for _ in range(tasks)]

    def wait() -> None:
        ray.wait(refs, num_returns=len(refs), timeout=0.1, fetch_local=False)

    found = _median_ms(wait)
    ray.kill(slow)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(child(options.child)))
        return
    print(f"load {os.getloadavg()[0]:.1f}, machine {machine_ms():.1f} ms")
    print("  ".join(name.rjust(len(form.format(0))) for name, form in COLUMNS))
    found = []
    for actors in options.actors:
        found.append(measure(actors))
        print("  ".join(form.format(found[-1][name]) for name, form in COLUMNS), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
