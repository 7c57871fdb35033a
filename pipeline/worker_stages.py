"""The stages of a run's two actor pools, as their processes construct and call them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mediamill.pipeline.checkpoint.checkpoint_hash import CheckpointHash
from mediamill.pipeline.checkpoint.machine_copy import local_folder
from mediamill.pipeline.coordinator.telemetry import EngineReport
from mediamill.pipeline.coordinator.utilization import (
    CALL_MS,
    DECODE_MS,
    FETCH_MS,
    STEP_MS,
    CallTimes,
)
from mediamill.pipeline.faults import BrokenEngineError
from mediamill.pipeline.ray_cluster.metrics import export_engine_rows
from mediamill.pipeline.tasks.answer_cache import AnswerCalls
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import CAPTION, Task

if TYPE_CHECKING:
    from mediamill.model.requests import Request


class PrepareStage:
    """The stage of an actor of the CPU pool: fetch and prepare."""

    def __init__(
        self,
        job: JobConfig,
        schema: ManifestSchema,
        checkpoint: tuple[str, CheckpointHash],
        base: str,
        count: Callable[[int], None],
        task: Task = CAPTION,
    ) -> None:
        # Stages are imported where they run: torch takes seconds, and the driver does not need it.
        from mediamill.pipeline.stages.fetch import Fetch, FetchRules
        from mediamill.pipeline.stages.prepare import Prepare

        self._times = CallTimes()
        self.take_times = self._times.take
        self._fetch = Fetch(schema, FetchRules.of(job, base))
        folder = local_folder(*checkpoint, job.resources.cache, weights=False)
        self._prepare = Prepare(schema, job, task, folder, count, base, self._decoded)

    def _decoded(self, seconds: float) -> None:
        self._times.add(DECODE_MS, seconds)

    def __call__(self, table: pa.Table) -> pa.Table:
        with self._times.measured(CALL_MS):
            # Each part is released before the next is fetched: its bytes count until then.
            parts = self._times.waits(FETCH_MS, self._fetch.parts(table))
            return pa.concat_tables(list(map(self._prepare, parts)))


class GenerateStage:
    """The stage of an actor that has an engine."""

    def __init__(
        self,
        job: JobConfig,
        schema: ManifestSchema,
        checkpoint: tuple[str, CheckpointHash],
        base: str,
        count: Callable[[int], None],
        threads: int,
        rows: int,
        on_gpu: bool,
        ranks: int = 1,
        run: str = "",
        on_end: Callable[[BrokenEngineError], None] | None = None,
        task: Task = CAPTION,
        registry: AnswerCalls | None = None,
    ) -> None:
        from mediamill.model.generation.stopping import before_stop
        from mediamill.pipeline.replica.canary import Canary
        from mediamill.pipeline.stages.generate import EngineSize, Generate

        folder = local_folder(*checkpoint, job.resources.cache)
        size = EngineSize(rows, threads, on_gpu, ranks)
        generate = Generate(schema, job, folder, count, size, on_end, task, registry)
        self._generate = generate
        if run:  # empty if this is not an actor of a run
            export_engine_rows(lambda: generate.rows_now, run)
        self._canary: Canary | None = None
        if job.canary.uri is not None:

            def answer(request: "Request") -> str:
                text = generate.decode(generate.ask(request).output_ids)
                return before_stop(text, generate.stop)

            self._canary = Canary(job, folder, Path(base), generate.sampling, answer)
            self._canary.check()
        self._steps_s = 0.0  # of the engine, until `take_times`

    def take_times(self) -> dict[str, int]:
        """Returns the milliseconds of the engine's steps since the last call, by counter."""
        before, self._steps_s = self._steps_s, self._generate.step_seconds
        return {STEP_MS: round(1000 * self._steps_s) - round(1000 * before)}

    def engine_report(self) -> EngineReport:
        """Returns the engine's occupancy now."""
        return EngineReport(*self._generate.occupancy())

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._canary is not None:
            self._canary.count(table.num_rows)
        return self._generate(table)
