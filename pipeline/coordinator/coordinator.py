"""The run's desk: one actor that owns what is finished, counts, and knows what is in work.

Turns these numbers into Ray's metrics too. Holds how the driver starts it, and how the driver and
write tasks call it. What the records mean is the ledger's; what a rate is, metrics.py's; what a
death means, attempts.py's.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mediamill.pipeline.coordinator import utilization
from mediamill.pipeline.coordinator.failure_policy import FailurePolicy, RunStatus, StopRules
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.state import Counts, Rows
from mediamill.pipeline.ray_cluster import metrics
from mediamill.pipeline.ray_cluster.metrics import Metrics, Rate, eta_s
from mediamill.pipeline.tasks.answer_cache import AnswerCache
from mediamill.pipeline.tasks.dedupe import Claim, RowAnswer
from mediamill.schemas.result import Progress

_POLL_S = 0.5
_PATIENCE_S = 5.0  # for an answer of the desk; it may be starting again


class Coordinator(ledger.Ledger, Metrics, FailurePolicy):
    """The one owner of a run's numbers: of the true ones, and of those for the eye.

    One actor and not three, since on a laptop each process costs a second of the start.
    answers: the columns of an answer, where copies are answered once; else there are none.
    """

    def __init__(
        self, output_url: str, run: str, rules: StopRules, answers: Sequence[str] = ()
    ) -> None:
        ledger.Ledger.__init__(self, output_url, run)
        Metrics.__init__(self)
        FailurePolicy.__init__(self, rules, _is_alive)
        self._answers, self._columns = AnswerCache(), answers
        self._recalling: asyncio.Task[None] | None = None
        self._began = time.monotonic()
        self._last: dict[str, float] = {}  # when something was added to a counter
        # What a desk before this one has committed, it has told as well.
        self._exported = metrics.Exported(run, self._totals())

    def word(self) -> RunStatus:
        """As the watch has it. The driver's asking is the beat of the metrics, too."""
        word = FailurePolicy.word(self)
        self._exported.update(self._totals())
        return word

    def add(self, name: str, number: int) -> None:
        """As Metrics."""
        Metrics.add(self, name, number)
        self._last[name] = time.monotonic()

    def counted(self) -> dict[str, int]:
        """As Metrics, and for how long rows were prepared, and not any more while others were
        still generated: milliseconds, see busy.py.
        """
        found = Metrics.counted(self)
        if prepared := self._last.get("prepared"):
            generated = self._last.get("generated", prepared)
            found[utilization.ACTIVE] = round(1000 * (prepared - self._began))
            found[utilization.SILENT] = max(0, round(1000 * (generated - prepared)))
        return found

    async def claim(self, asked: Sequence[tuple[bytes, str, object]]) -> list[Claim]:
        """As AnswerCache, once what was answered before is known."""
        await self._recalled()
        return self._answers.claim(asked)

    async def put_answers(self, answers: Mapping[bytes, RowAnswer]) -> None:
        """As AnswerCache."""
        await self._recalled()
        self._answers.put(answers)

    async def _recalled(self) -> None:
        """Meanwhile the ledger goes on: large outputs take minutes."""
        if self._recalling is None:
            self._recalling = asyncio.create_task(asyncio.to_thread(self._recall))
        await asyncio.shield(self._recalling)

    def _recall(self) -> None:
        if self._state.counts.rows:
            self._answers.load(self._output, self._columns)

    def _totals(self) -> metrics.Totals:
        """What is finished is counted by the ledger, the rest as the stages tell it."""
        done, told = self._state.run_counts, self.counted()
        return {
            (metrics.ROWS, "prepare"): told.get("prepared", 0),
            (metrics.ROWS, "generate"): told.get("generated", 0),
            (metrics.ROWS, "write"): done.rows,
            **{(metrics.ERROR_ROWS, code): number for code, number in dict(done.errors).items()},
            (metrics.TOKENS, "prompt"): done.prompt_tokens,
            (metrics.TOKENS, "visual"): done.visual_tokens,
            (metrics.TOKENS, "output"): done.output_tokens,
            (metrics.ENGINES, ""): FailurePolicy.word(self).engines,
        }


@dataclass(frozen=True)
class LedgerCalls:
    """The ledger as a write task sees it."""

    actor: Any  # a handle; Ray's types do not know what `remote` returns

    def taken(self, rows: Rows) -> Rows:
        import ray

        found: Rows = ray.get(self.actor.taken.remote(rows))
        return found

    def commit(self, commit: ledger.Commit) -> ledger.CommitReply:
        import ray

        answer: ledger.CommitReply = ray.get(self.actor.commit.remote(commit))
        return answer

    def published(self, names: Sequence[str]) -> ledger.CommitReply:
        import ray

        answer: ledger.CommitReply = ray.get(self.actor.published.remote(names))
        return answer


@dataclass(frozen=True)
class Counter:
    """Adds to one counter and does not wait."""

    actor: Any
    name: str

    def __call__(self, number: int) -> None:
        self.actor.add.remote(self.name, number)


def start_desk(output_url: str, run: str, rules: StopRules, answers: Sequence[str] = ()) -> Any:
    """A handle of a new desk on this node. It is restarted, and reads the log, if it dies."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "scheduling_strategy": here,
    }
    return ray.remote(Coordinator).options(**options).remote(output_url, run, rules, answers)


def ask(desk: Any) -> RunStatus | None:
    """What the desk has to say to the driver; None while it does not answer."""
    import ray

    try:
        word: RunStatus = ray.get(desk.word.remote(), timeout=_PATIENCE_S)
    except ray.exceptions.RayError:
        return None
    return word


def what_binds(desk: Any) -> str | None:
    """The stage that the others wait for; None if it is no pool, or while the desk is silent."""
    import ray

    try:
        counted: dict[str, int] = ray.get(desk.counted.remote(), timeout=_PATIENCE_S)
    except ray.exceptions.RayError:
        return None
    return utilization.binds(utilization.shares(counted))


def end(desk: Any) -> None:
    """Ends the desk, once its last numbers are told to Ray's metrics."""
    import ray

    ask(desk)
    ray.kill(desk)


def _is_alive(node: str) -> bool:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return any(one["NodeID"] == node and one["Alive"] for one in nodes)


@dataclass(frozen=True)
class Reporter:
    """Tells of a run's progress. rows: of the manifest; before: finished when the run began.

    started: on the monotonic clock, in seconds.
    """

    desk: Any
    rows: int
    before: int
    started: float

    @contextmanager
    def telling(self, on_progress: Callable[[Progress], None] | None) -> Iterator[None]:
        """Calls on_progress with what has been counted, meanwhile and at the end."""
        if on_progress is None:
            yield
            return
        rate, over = Rate(), threading.Event()

        def report() -> None:
            while not over.wait(_POLL_S):
                if progress := self._progress(rate):
                    on_progress(progress)

        reporter = threading.Thread(target=report, daemon=True, name="progress")
        reporter.start()
        try:
            yield
        finally:
            over.set()
            reporter.join()
            if progress := self._progress(rate):
                on_progress(progress)

    def _progress(self, rate: Rate) -> Progress | None:
        """None while an actor does not answer; it may be starting again."""
        import ray

        try:
            counted: dict[str, int]
            whole: Counts
            here: Counts
            word: RunStatus
            asked = [self.desk.counted, self.desk.counts, self.desk.word]
            counted, (whole, here), word = ray.get(
                [one.remote() for one in asked], timeout=_PATIENCE_S
            )
        except ray.exceptions.RayError:
            return None
        seconds = time.monotonic() - self.started
        generated = min(counted.get("generated", 0), self.rows - self.before)
        recent = rate.update(seconds, generated)
        return Progress(
            rows_total=self.rows,
            rows_done=whole.rows,
            rows_skipped=self.before,
            ok=here.ok,
            errors=here.errors,
            output_tokens=here.output_tokens,
            seconds=seconds,
            rate_rows_s=recent,
            eta_s=eta_s(self.rows - self.before - generated, recent),
            prepared=counted.get("prepared", 0),
            generated=generated,
            written=here.rows,
            engines_replaced=word.engines,
            busy=utilization.shares(counted),
            binds=utilization.binds(utilization.shares(counted)),
        )
