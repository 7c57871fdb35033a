"""The generate stage: turns prepared rows into answers, with one engine that all calls share.

Error rows pass unchanged. The id of each request names its row and the hash of its media, and is
checked when the completion comes back. The task's handler makes the requests of a row and the
values of its answer, see pipeline/tasks/.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from mediamill.model.engine import Completion, EngineStats, Request
from mediamill.model.sampling import Sampling
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.pipeline.faults import BrokenEngineError
from mediamill.pipeline.ladder.attempts import Attempts, next_attempt, with_attempts
from mediamill.pipeline.ray_cluster.pool_sizes import Pools
from mediamill.pipeline.records import (
    answer_columns,
    failure_columns,
    failures,
    parsed_schema,
    replace_columns,
)
from mediamill.pipeline.replica.engine_thread import EngineThread
from mediamill.pipeline.replica.load_engine import load_engine, refuse_broken
from mediamill.pipeline.tasks.dedupe import Deduplicator, Registry, RowAnswer
from mediamill.pipeline.tasks.prepared_row import PreparedRow, prepared_row
from mediamill.pipeline.tasks.request_result import RequestResult, classify
from mediamill.pipeline.tasks.score import END_OF_TURN
from mediamill.pipeline.tasks.task import HandlerOptions
from mediamill.pipeline.tasks.tasks import task_kind
from mediamill.schemas import columns as c
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import CAPTION, Task

_NO_ANSWER = RowAnswer({c.ATTEMPT: 1, c.FINISH_REASON: "error"})  # of rows that came as errors
_QUEUED_PER_ROW = 2  # requests that the engine holds, waiting ones included, per row of its batch


@dataclass(frozen=True)
class EngineSize:
    """The size of an engine.

    rows: of its batch.
    threads: of the CPU, for each rank of an engine without a GPU.
    ranks: processes that share the model.
    """

    rows: int
    threads: int
    on_gpu: bool
    ranks: int = 1

    @classmethod
    def of(cls, pools: Pools) -> "EngineSize":
        """Returns the size of each engine of the pools."""
        return cls(pools.engine_rows, pools.engine_threads, pools.replica_gpus > 0, pools.ranks)


class Generate:
    """The stage. Several threads may call it at once: their rows share the engine.

    on_end: called in another thread when the engine has lost a rank, even if no call waits. None:
        the calls raise the error.
    registry: the answers of the run's other processes, for tasks that dedupe.
    sampling: the job's; each row has a seed made of this one and its id.
    decode: token ids to text.
    """

    def __init__(
        self,
        manifest: ManifestSchema,
        job: JobConfig,
        checkpoint: Path,
        count: Callable[[int], None],
        size: EngineSize,
        on_end: Callable[[BrokenEngineError], None] | None = None,
        task: Task = CAPTION,
        registry: Registry | None = None,
    ) -> None:
        torch.set_num_threads(size.threads)
        self._manifest, self._task = manifest, task
        self._count = count
        self.sampling = Sampling(**job.generation.model_dump(), seed=job.seed)
        rows = size.rows
        if not size.on_gpu:
            # Questions about one medium are computed together: the more requests enter at once, the
            # less each costs. A GPU is busy with half as many.
            rows *= len(task.questions)
        self._engine = load_engine(
            checkpoint,
            "cuda" if size.on_gpu else "cpu",
            size.ranks,
            size.threads,
            on_end or (lambda error: self._engine_thread.end(error)),
            dtype=job.resources.dtype,
            batch_rows=rows,
            mrope=job.video.mrope,
        )
        self._image_rules = self._engine.rules
        self._engine_thread = EngineThread(
            self._engine, _QUEUED_PER_ROW * rows, refuse_broken, job.limits.step_timeout_s
        )
        tokenizer = Tokenizer.load(checkpoint)
        self.decode = tokenizer.decode
        self._deduplicator = None
        if registry is not None and task.dedupe:
            self._deduplicator = Deduplicator(registry)
        end_token = tokenizer.special.get(END_OF_TURN)
        options = HandlerOptions(self.sampling, self.decode, self.stop, end_token, job.retries)
        self._handler = task_kind(task).handler(options)

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end answers: the job's, or else the checkpoint's."""
        stop = self.sampling.stop
        return self._engine.defaults.stop if stop is None else stop

    @property
    def rows_now(self) -> int:
        """Rows of the engine's batch at this moment."""
        return self._engine.stats().rows

    @property
    def stats(self) -> EngineStats:
        """Totals of the engine; call it while no call of the stage runs."""
        return self._engine.stats()

    @property
    def step_seconds(self) -> float:
        """The time of the engine's steps so far."""
        return self._engine_thread.step_seconds

    def occupancy(self) -> tuple[int, int, int, int]:
        """Returns running and waiting requests, pages of the KV cache, and those in use."""
        stats = self._engine.stats()
        waiting = max(0, self._engine_thread.requests - stats.rows)
        return stats.rows, waiting, stats.pages, stats.pages_in_use

    def ask(self, request: Request) -> Completion:
        """Returns the completion of a request that belongs to no row.

        Raises RuntimeError if the request fails, and the errors of a call of the stage.
        """
        [result] = self._engine_thread([request])
        if result.completion is None or result.completion.finish_reason == "error":
            error = result.error if result.completion is None else result.completion.error
            raise RuntimeError(f"the engine gave no answer to {request.id}: {error}")
        return result.completion

    def close(self) -> None:
        """Stops the engine's thread; calls raise BrokenEngineError from then on."""
        self._engine_thread.close()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Takes a table of `prepared_schema`, and returns one of `parsed_schema`.

        Raises IdentityError and BrokenEngineError, which are no row's fault.
        """
        row_failures = failures(table)
        task, rules = self._task, self._image_rules
        rows = {
            number: prepared_row(table, number, rules, task.input_columns, task.dedupe)
            for number, failure in enumerate(row_failures)
            if failure is None
        }
        attempts = table[c.ATTEMPT_HISTORY].to_pylist()

        def answer(rows: Mapping[int, PreparedRow]) -> dict[int, RowAnswer]:
            return self._answers(rows, attempts)

        if self._deduplicator is None:
            answered = answer(rows)
        else:
            answered = self._deduplicator.answers(rows, answer)
        for number, row_answer in answered.items():
            row_failures[number] = row_answer.failure
        self._count(table.num_rows)
        answers = [answered.get(number, _NO_ANSWER) for number in range(table.num_rows)]
        columns = {
            name: [answer.values.get(name) for answer in answers] for name in answer_columns(task)
        }
        if task.dedupe:
            columns[c.DUPLICATE_OF] = [answer.duplicate_of for answer in answers]
            columns[c.CONTENT_HASH] = [
                rows[number].content_hash.hex() if number in rows else None
                for number in range(table.num_rows)
            ]
        schema, table = parsed_schema(self._manifest, task), with_attempts(table, attempts)
        return replace_columns(table, {**columns, **failure_columns(row_failures)}, schema)

    def _answers(
        self, rows: Mapping[int, PreparedRow], attempts: list[Attempts | None]
    ) -> dict[int, RowAnswer]:
        """Returns the answer of each row, without regard to copies. Adds to the rows' attempts."""
        results = self._results(rows, attempts)
        answers = {}
        for number, row in rows.items():
            values, failure = self._handler.answer(row, results[number])
            answers[number] = RowAnswer(_totals(results[number]) | values, failure)
        return answers

    def _results(
        self, rows: Mapping[int, PreparedRow], attempts: list[Attempts | None]
    ) -> dict[int, list[RequestResult]]:
        """Returns the last result of each request of each row, after its retries."""
        results: dict[int, list[RequestResult]] = {number: [] for number in rows}
        pending = [
            (number, place, request)
            for number, row in rows.items()
            for place, request in enumerate(self._handler.requests(row))
        ]
        asked = 1
        while pending:
            engine_results = self._engine_thread([request for _, _, request in pending])
            retries: list[tuple[int, int, Request]] = []
            for entry, engine_result in zip(pending, engine_results, strict=True):
                number, place, request = entry
                result = classify(request, engine_result, asked)
                results[number][place : place + 1] = [result]
                retry = self._handler.retry(rows[number], place, result)
                if retry is not None:
                    if all(number != other for other, _, _ in retries[-1:]):
                        reason, changed = _reason(result), _changed(request, retry)
                        attempts[number] = next_attempt(attempts[number], None, reason, changed)
                    retries.append((number, place, retry))
            pending, asked = retries, asked + 1
        return results


def _reason(result: RequestResult) -> str:
    """Why an answer is asked for again, for the list of attempts."""
    if result.completion.finish_reason == "length":
        return f"cut off after {len(result.completion.output_ids)} tokens"
    return "repeats itself, or does not fit"


def _changed(old: Request, new: Request) -> str:
    """What differs in the sampling of two requests."""
    names = ("temperature", "repetition_penalty")
    values = [(name, getattr(new.sampling, name)) for name in names]
    pairs = (f"{name}={value}" for name, value in values if value != getattr(old.sampling, name))
    return ", ".join(pairs) or "seed"


def _totals(results: list[RequestResult]) -> dict[str, Any]:
    """The columns of the whole row, whatever the task."""
    return {
        c.ATTEMPT: max(result.attempt for result in results),
        c.PROMPT_TOKENS: sum(result.completion.prompt_tokens for result in results),
        c.OUTPUT_TOKENS: sum(len(result.completion.output_ids) for result in results),
    }
