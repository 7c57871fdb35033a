"""The coordinator: one actor that owns a run's ledger, counters, telemetry and failure policy.

Also holds the functions by which the driver and the write tasks call it, and exports metrics.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mediamill.pipeline.coordinator import utilization
from mediamill.pipeline.coordinator.deferred import DeferredRows
from mediamill.pipeline.coordinator.failure_policy import (
    GENERATE,
    PREPARE,
    FailurePolicy,
    RunStatus,
)
from mediamill.pipeline.coordinator.telemetry import EngineReport, Telemetry, TelemetryStore
from mediamill.pipeline.faults import RunError, stopped_by
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.state import Counts, Rows
from mediamill.pipeline.quality.count import alarm
from mediamill.pipeline.quality.repeated_texts import RepeatedTexts
from mediamill.pipeline.ray_cluster import metrics
from mediamill.pipeline.tasks.answer_cache import AnswerCache
from mediamill.pipeline.tasks.dedupe import Claim, RowAnswer
from mediamill.schemas.job import Limits, Resources
from mediamill.schemas.job_alarms import Alarms
from mediamill.schemas.progress import ErrorExample

_TIMEOUT_S = 5.0  # for a reply of the coordinator, which may be restarting


class Coordinator(FailurePolicy, DeferredRows):
    """A run's failure policy as a Ray actor, with the run's ledger, counters and answer cache.

    It is one actor and not four, since each process adds a second to the start on a laptop. Ray
    calls only methods of the actor's own class: it inherits those of the policy.

    resources, limits: of the job, see `FailurePolicy`.
    answer_columns: the columns of an answer if copies are deduplicated, else none.
    loads_answers: whether those of earlier runs count.
    alarms: of the job; None = no alarm.
    """

    def __init__(
        self,
        output_url: str,
        run: str,
        resources: Resources,
        limits: Limits,
        last_pool: str = GENERATE,
        answer_columns: Sequence[str] = (),
        loads_answers: bool = True,
        alarms: Alarms | None = None,
    ) -> None:
        super().__init__(resources, limits, _is_alive, last_pool)
        self._ledger = ledger.Ledger(output_url, run)
        self._count(self._ledger.state.run_counts)
        self._answers, self._answer_columns = AnswerCache(), answer_columns
        self._loads_answers = loads_answers
        self._alarms, self._texts = alarms or Alarms(), RepeatedTexts()
        self._loading: asyncio.Task[None] | None = None
        self._started = time.monotonic()
        DeferredRows.__init__(self)
        self._counters: Counter[str] = Counter()
        self._changed: dict[str, float] = {}  # when a counter was last added to
        # A coordinator before this one has already exported what it committed.
        self._exported = metrics.ExportedCounters(run, self._totals())
        self._gauges = metrics.ExportedGauges(run)
        self._telemetry = TelemetryStore()

    async def finished(self, rows: Rows) -> Rows:
        return await self._ledger.finished(rows)

    async def commit(self, commit: ledger.Commit) -> ledger.CommitReply:
        reply = await self._ledger.commit(commit)
        if not reply.finished:
            self._texts.merge(*commit.texts)
            self.check_answers(
                alarm(self._alarms, self._ledger.state.run_counts, self._texts.most_common())
            )
        return reply

    async def published(self, files: Mapping[str, int]) -> ledger.CommitReply:
        return await self._ledger.published(files)

    def repeated_text(self) -> tuple[str, int] | None:
        """Returns the run's commonest text and the number of its rows; None without texts."""
        return self._texts.most_common()

    async def counts(self) -> tuple[Counts, Counts]:
        return await self._ledger.counts()

    def _count(self, committed: Counts) -> None:
        """Counts the rows that a coordinator before this one committed in this run."""
        self._finished_rows += committed.rows
        self._errors.update(committed.errors)

    def status(self) -> RunStatus:
        """Returns the run status. Also exports metrics, since the driver polls this regularly."""
        self._exported.update(self._totals())
        self._export_gauges(self.telemetry())
        return super().status()

    def telemetry(self) -> Telemetry:
        """Returns what the run's processes have told of themselves."""
        return self._telemetry.view(self._counters, self._loads)

    def put_engine(self, actor: str, report: EngineReport) -> None:
        """Takes the occupancy of the engine of an actor."""
        self._telemetry.put_engine(actor, report)

    def add_examples(self, examples: Mapping[str, ErrorExample]) -> None:
        """Takes error rows, by code."""
        self._telemetry.add_examples(examples)

    def _export_gauges(self, view: Telemetry) -> None:
        self._gauges.set(
            {
                (metrics.WAITING_ROWS, ""): view.engines.waiting,
                (metrics.CACHE_USE, ""): view.engines.cache_use or 0.0,
                **{(metrics.SHARE, part): share for part, share in view.shares.items()},
                **{
                    (metrics.PROCESSES, pool): view.loaded.get(pool, 0)
                    for pool in (PREPARE, GENERATE)
                },
            }
        )

    def add(self, numbers: Mapping[str, int]) -> None:
        """Adds to counters. They are approximate: a retried task counts twice."""
        self._counters.update(numbers)
        self._changed.update(dict.fromkeys(numbers, time.monotonic()))

    def counters(self) -> dict[str, int]:
        """Returns the counters, and the times that `utilization` needs, in milliseconds."""
        counters = dict(self._counters)
        if prepared := self._changed.get("prepared"):
            generated = self._changed.get("generated", prepared)
            counters[utilization.ACTIVE] = round(1000 * (prepared - self._started))
            counters[utilization.FINISHED] = max(0, round(1000 * (generated - prepared)))
        return counters

    async def claim(self, contents: Sequence[tuple[bytes, str, object]]) -> list[Claim]:
        """See `AnswerCache`. Waits until the answers of previous runs are loaded."""
        await self._previous_answers()
        return self._answers.claim(contents)

    async def put_answers(self, answers: Mapping[bytes, RowAnswer]) -> None:
        """See `AnswerCache`. Waits until the answers of previous runs are loaded."""
        await self._previous_answers()
        self._answers.put(answers)

    async def _previous_answers(self) -> None:
        """Loads them in a thread, since it takes minutes for a large output."""
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self._load_previous))
        await asyncio.shield(self._loading)

    def _load_previous(self) -> None:
        if self._loads_answers and self._ledger.state.counts.rows:
            self._answers.load(self._ledger.output, self._answer_columns)

    def _totals(self) -> metrics.Totals:
        """The ledger counts finished rows; the stages report the others."""
        finished = self._ledger.state.run_counts
        return {
            (metrics.ROWS, "prepare"): self._counters["prepared"],
            (metrics.ROWS, "generate"): self._counters["generated"],
            (metrics.ROWS, "write"): finished.rows,
            **{(metrics.ERROR_ROWS, code): rows for code, rows in finished.errors.items()},
            (metrics.TOKENS, "prompt"): finished.prompt_tokens,
            (metrics.TOKENS, "visual"): finished.visual_tokens,
            (metrics.TOKENS, "output"): finished.output_tokens,
            (metrics.ENGINES, ""): self._broken_engines,
        }


@dataclass(frozen=True)
class RemoteCounter:
    """Adds to the coordinator's counters of these names, and does not wait."""

    actor: Any
    names: Sequence[str]

    def __call__(self, number: int) -> None:
        self.actor.add.remote(dict.fromkeys(self.names, number))


def start_coordinator(*arguments: Any) -> Any:
    """Starts a `Coordinator` with these arguments on this node, and returns its handle.

    Ray restarts it if it dies; it then reads the ledger's log.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(Coordinator).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=node
    )
    return actor.remote(*arguments)


def poll(coordinator: Any) -> RunStatus | None:
    """Returns the run status; None while the coordinator does not reply."""
    status: list[RunStatus] | None = replies(coordinator.status)
    return status[0] if status else None


@dataclass(frozen=True)
class Life:
    """Whether Ray still restarts the coordinator.

    restarts: so far. death: why it is dead for good; None if it is not.
    """

    restarts: int
    death: RunError | None = None


def life(coordinator: Any) -> Life:
    """Returns the state of a coordinator that does not reply."""
    import ray
    from ray._private import state

    # Ray's public API for this needs the dashboard.
    info = state.actors(coordinator._actor_id.hex())
    if info.get("State") != "DEAD":
        return Life(int(info.get("NumRestarts", 0)))
    try:
        ray.get(coordinator.status.remote(), timeout=_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        reason = stopped_by(error)
    else:
        reason = RunError("it ended")
    message = f"the coordinator, the process that owns the ledger, cannot run: {reason}"
    return Life(0, type(reason)(message))


def counters_of(coordinator: Any) -> dict[str, int]:
    """Returns the counters of the run; none without a reply."""
    counters: list[dict[str, int]] | None = replies(coordinator.counters)
    return counters[0] if counters else {}


def shut_down(coordinator: Any) -> None:
    """Exports the last metrics and ends the coordinator."""
    poll(coordinator)
    kill(coordinator)


def kill(coordinator: Any) -> None:
    """Ends the coordinator at once."""
    import ray

    ray.kill(coordinator)


def replies(*methods: Any) -> Any:
    """Calls methods of the coordinator. Returns None if it does not reply in time."""
    import ray

    try:
        return ray.get([method.remote() for method in methods], timeout=_TIMEOUT_S)
    except ray.exceptions.RayError:
        return None


def _is_alive(node: str) -> bool:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return any(entry["NodeID"] == node and entry["Alive"] for entry in nodes)
