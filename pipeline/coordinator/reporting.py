"""Reports the progress of a run from the driver, about twice a second."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mediamill.pipeline.coordinator import utilization
from mediamill.pipeline.coordinator.coordinator import replies
from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE, RunStatus
from mediamill.pipeline.coordinator.telemetry import Telemetry
from mediamill.pipeline.ledger.state import Counts
from mediamill.pipeline.ray_cluster.metrics import Rate, eta_s
from mediamill.schemas import progress as p
from mediamill.schemas.progress import Pool, Progress

_POLL_S = 0.5
OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class RunFacts:
    """What does not change during a run.

    rows: of the manifest. skipped: finished before the run began. later: left for a later run.
    started: when the run began, on the monotonic clock, in seconds.
    generates: whether it has engines. model_bytes: of the weights; None if not known.
    """

    rows: int
    skipped: int
    later: int
    started: float
    generates: bool = True
    model_bytes: int | None = None

    def begun(self, phase: str, waits_for: str | None = None) -> Progress:
        """Returns the progress of a run that has no rows yet."""
        return Progress(
            rows_total=self.rows,
            rows_done=self.skipped,
            rows_skipped=self.skipped,
            rows_later=self.later,
            seconds=time.monotonic() - self.started,
            generates=self.generates,
            model_bytes=self.model_bytes,
            phase=phase,
            waits_for=waits_for,
        )


class PoolWatch:
    """Reads the sizes of the actor pools at each step of Ray Data's scheduling loop.

    names: parts of the names of the operators that prepare and, if any, generate.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self.pools: tuple[Pool, ...] = tuple(Pool() for _ in names)

    def on_execution_step(self, executor: Any) -> None:
        """Ray Data has no public way to ask a running execution for them."""
        pools = list(self.pools)
        for operator in getattr(executor, "_topology", None) or ():
            for number, name in enumerate(self._names):
                if name in operator.name:
                    pool = operator.get_autoscaling_actor_pools()[0]
                    alive, starting = pool.num_alive_actors(), pool.num_pending_actors()
                    starting += pool.num_restarting_actors()
                    wanted = max(pool.min_size(), alive + starting)
                    pools[number] = Pool(alive, starting, wanted)
        self.pools = tuple(pools)


@dataclass
class _Phase:
    """The phase of a run, which never goes back."""

    name: str = p.PROCESSES
    since: float = field(default_factory=time.monotonic)

    def update(self, name: str) -> None:
        order = (p.PROCESSES, p.MODEL, p.FIRST_ROWS, p.ROWS, p.FINISHING)
        if order.index(name) > order.index(self.name):
            self.name, self.since = name, time.monotonic()


@contextmanager
def reporting(
    on_progress: OnProgress | None, coordinator: Any, facts: RunFacts, pools: PoolWatch
) -> Iterator[None]:
    """Reports the progress of a run from a thread, about twice a second, and once at the end."""
    if on_progress is None:
        yield
        return
    rate, tokens, phase, stopped = Rate(), Rate(), _Phase(), threading.Event()

    def report() -> None:
        if progress := _progress(coordinator, rate, tokens, phase, facts, pools):
            on_progress(progress)

    def report_until_stopped() -> None:
        while not stopped.wait(_POLL_S):
            report()

    def end() -> None:
        stopped.set()
        thread.join()
        report()

    on_progress(facts.begun(p.PROCESSES))
    thread = threading.Thread(target=report_until_stopped, daemon=True, name="progress")
    thread.start()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # at once
        stopped.set()
        raise
    except Exception:
        end()
        raise
    end()


def _progress(
    coordinator: Any,
    rate: Rate,
    tokens: Rate,
    phase: _Phase,
    facts: RunFacts,
    watch: PoolWatch,
) -> Progress | None:
    """Returns the progress; None while the coordinator does not reply."""
    answers = replies(
        coordinator.counters,
        coordinator.counts,
        coordinator.status,
        coordinator.telemetry,
        coordinator.repeated_text,
    )
    if answers is None:
        return None
    counters: dict[str, int]
    run: Counts
    status: RunStatus
    view: Telemetry
    repeated: tuple[str, int] | None
    counters, (_, run), status, view, repeated = answers
    repeated_text, repeated_rows = repeated or (None, 0)
    seconds = time.monotonic() - facts.started
    rows = facts.rows - facts.later - facts.skipped  # of this run
    generated = min(counters.get("generated", 0), rows)
    busy = utilization.pool_utilization(counters)
    recent = utilization.pool_utilization(view.recent)
    binds = utilization.bottleneck(recent or busy)
    phase.update(_phase_of(view, run.rows, generated, rows, facts.generates))
    is_ready = phase.name not in (p.PROCESSES, p.MODEL)  # loading is not part of the rate
    rows_per_s = rate.update(seconds, generated) if is_ready else 0.0
    tokens_s = tokens.update(seconds, run.output_tokens) if is_ready else 0.0
    loaded = [view.loaded.get(pool, 0) for pool in (PREPARE, GENERATE)]
    lost = [view.lost.get(pool, 0) for pool in (PREPARE, GENERATE)]
    pools = [*watch.pools, Pool()][:2]
    workers, replicas = (
        Pool(min(pool.running, ready), pool.wanted - min(pool.running, ready), pool.wanted, gone)
        for pool, ready, gone in zip(pools, loaded, lost, strict=True)
    )
    ceiling = utilization.engine_rate(counters, generated)
    return Progress(
        rows_total=facts.rows,
        rows_done=facts.skipped + run.rows,
        rows_skipped=facts.skipped,
        rows_later=facts.later,
        ok=run.ok,
        errors=run.errors,
        examples={code: view.examples[code] for code in run.errors if code in view.examples},
        prompt_tokens=run.prompt_tokens,
        visual_tokens=run.visual_tokens,
        output_tokens=run.output_tokens,
        tokens_s=tokens_s,
        seconds=seconds,
        rate_rows_s=rows_per_s,
        eta_s=eta_s(rows - generated, rows_per_s),
        prepared=counters.get("prepared", 0),
        generated=generated,
        written=run.rows,
        engines_replaced=status.engines_replaced,
        generates=facts.generates,
        busy=busy,
        binds=binds,
        shares=view.shares,
        bound_by=utilization.bound_by(binds, view.shares),
        engine_rows_s=ceiling * max(1, replicas.running) if ceiling else None,
        engines=view.engines,
        workers=workers,
        replicas=replicas,
        phase=phase.name,
        phase_s=time.monotonic() - phase.since,
        model_bytes=facts.model_bytes,
        findings=run.findings,
        repeated_text=repeated_text,
        repeated_rows=repeated_rows,
    )


def _phase_of(view: Telemetry, written: int, generated: int, rows: int, generates: bool) -> str:
    if written >= rows:
        return p.FINISHING
    if generated or written:
        return p.ROWS
    pool = GENERATE if generates else PREPARE
    if view.loaded.get(pool):
        return p.FIRST_ROWS
    return p.MODEL if generates and view.loading.get(pool) else p.PROCESSES
