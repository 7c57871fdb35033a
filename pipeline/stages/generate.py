"""Turns prepared rows into their answers, with one engine that all calls share.

Error rows pass by. A row's id and the hash of its media go through the engine with its tensors, and
are compared with the row when the answer comes back. What is asked, and what an answer makes of its
row, is in asking/.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from mediamill.model.engine import Completion, Request
from mediamill.model.families.qwen2_vl.config import MRopeRule
from mediamill.model.sampling import Sampling
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.pipeline.faults import BrokenEngineError, IdentityError
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
from mediamill.pipeline.tasks.score_texts import END_OF_TURN
from mediamill.pipeline.tasks.task import RequestResult, classify
from mediamill.pipeline.tasks.tasks import task_handler
from mediamill.schemas import columns as c
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import CAPTION, Task

__all__ = ["BrokenEngineError", "Generate", "GenerateRules", "IdentityError"]

_NONE = RowAnswer({c.ATTEMPT: 1, c.FINISH_REASON: "error"})  # rows that were errors already

# Requests that the engine has at once, per row that runs: the others wait for a row to be free.
_AHEAD = 2


@dataclass(frozen=True)
class GenerateRules:
    """How answers are made. threads: of the CPU, of each rank of an engine without a GPU.

    sampling: of every row, except that each row has a seed of its own, made of this one and its id.
    mrope: how the positions of videos are counted. ranks: processes that share the model.
    step_s: as of `EngineThread`.
    """

    sampling: Sampling
    dtype: str
    device: str
    batch_rows: int
    threads: int
    mrope: MRopeRule = "original"
    ranks: int = 1
    step_s: float = math.inf

    @classmethod
    def of(
        cls, job: JobConfig, rows: int, threads: int, on_gpu: bool, ranks: int = 1
    ) -> "GenerateRules":
        """What `job` says of generation, for an engine of so many rows on the replica's device."""
        sampling = Sampling(
            max_new_tokens=job.generation.max_new_tokens,
            min_new_tokens=job.generation.min_new_tokens,
            temperature=job.generation.temperature,
            top_k=job.generation.top_k,
            top_p=job.generation.top_p,
            min_p=job.generation.min_p,
            repetition_penalty=job.generation.repetition_penalty,
            stop=job.generation.stop,
            seed=job.seed,
        )
        return cls(
            sampling=sampling,
            dtype=job.resources.dtype,
            device="cuda" if on_gpu else "cpu",
            batch_rows=rows,
            threads=threads,
            mrope=job.video.mrope,
            ranks=ranks,
            step_s=job.limits.step_timeout_s,
        )


class Generate:
    """The stage. May be called by several threads at once: their rows share the engine.

    on_end: called in another thread when the engine has lost a rank, whether or not a call waits;
    None: the calls raise it. registry: of what other such actors answer, for tasks that dedupe.
    """

    def __init__(
        self,
        manifest: ManifestSchema,
        rules: GenerateRules,
        checkpoint: Path,
        count: Callable[[int], None],
        on_end: Callable[[BrokenEngineError], None] | None = None,
        task: Task = CAPTION,
        registry: Registry | None = None,
    ) -> None:
        torch.set_num_threads(rules.threads)
        self._manifest, self._task = manifest, task
        self._rules = rules
        self._count = count
        rows = rules.batch_rows
        if rules.device == "cpu":
            # Questions about one medium are encoded and computed together, and the larger the lots
            # that enter, the less each costs. A GPU has enough to do with half of the pictures.
            rows *= len(task.questions)
        self._engine = load_engine(
            checkpoint,
            rules.device,
            rules.ranks,
            rules.threads,
            on_end or self._end,
            dtype=rules.dtype,
            batch_rows=rows,
            mrope=rules.mrope,
        )
        self._image_rules = self._engine.rules
        self._batcher = EngineThread(self._engine, _AHEAD * rows, refuse_broken, rules.step_s)
        tokenizer = Tokenizer.load(checkpoint)
        self.decode = tokenizer.decode
        end = tokenizer.special.get(END_OF_TURN)
        self._copies = Deduplicator(registry) if registry is not None and task.dedupe else None
        self._asking = task_handler(task, rules.sampling, self.decode, self.stop, end)

    def _end(self, error: BrokenEngineError) -> None:
        self._batcher.end(error)

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end answers: the job's, or else the checkpoint's."""
        wish = self._rules.sampling.stop
        return self._engine.defaults.stop if wish is None else wish

    @property
    def rows_now(self) -> int:
        """How many rows the engine works on."""
        return self._engine.stats().rows

    @property
    def sampling(self) -> Sampling:
        """What each row's is made of."""
        return self._rules.sampling

    def ask(self, request: Request) -> Completion:
        """The answer to a request that is no row's; it shares the engine with those that are.

        Raises what the call does, and RuntimeError when there is no answer.
        """
        answer = self._batcher([request])[0]
        if answer.completion is None or answer.completion.finish_reason == "error":
            why = answer.error if answer.completion is None else answer.completion.error
            raise RuntimeError(f"the engine gave no answer to {request.id}: {why}")
        return answer.completion

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `prepared_schema` -> one of `parsed_schema`.

        Raises IdentityError and BrokenEngineError, which are no row's fault.
        """
        found = failures(table)
        task, rules = self._task, self._image_rules
        rows = {
            number: prepared_row(table, number, rules, task.own_columns, task.dedupe)
            for number, failure in enumerate(found)
            if failure is None
        }
        told = self._told(rows) if self._copies is None else self._copies.told(rows, self._told)
        for number, one in told.items():
            found[number] = one.failure
        self._count(table.num_rows)
        answers = [told.get(number, _NONE) for number in range(table.num_rows)]
        columns = {
            name: [one.values.get(name) for one in answers] for name in answer_columns(self._task)
        }
        if self._task.dedupe:
            columns[c.DUPLICATE_OF] = [one.duplicate_of for one in answers]
            columns[c.CONTENT_HASH] = [
                rows[number].content_hash.hex() if number in rows else None
                for number in range(table.num_rows)
            ]
        schema = parsed_schema(self._manifest, self._task)
        return replace_columns(table, {**columns, **failure_columns(found)}, schema)

    def _told(self, rows: Mapping[int, PreparedRow]) -> dict[int, RowAnswer]:
        """What each row is told, copies or not."""
        said = self._said(rows)
        told = {}
        for number, row in rows.items():
            values, failure = self._asking.answer(row, said[number])
            told[number] = RowAnswer(_totals(said[number]) | values, failure)
        return told

    def _said(self, rows: Mapping[int, PreparedRow]) -> dict[int, list[RequestResult]]:
        """What becomes of the requests of each row, also of those that are made anew."""
        said: dict[int, list[RequestResult]] = {number: [] for number in rows}
        asked = [
            (number, place, request)
            for number, row in rows.items()
            for place, request in enumerate(self._asking.requests(row))
        ]
        attempt = 1
        while asked:
            outcomes = self._batcher([request for _, _, request in asked])
            further = []
            for (number, place, request), outcome in zip(asked, outcomes, strict=True):
                one = classify(request, outcome, attempt)
                said[number][place : place + 1] = [one]
                another = self._asking.again(rows[number], place, one)
                if another is not None:
                    further.append((number, place, another))
            asked, attempt = further, attempt + 1
        return said


def _totals(said: list[RequestResult]) -> dict[str, Any]:
    """Of a whole row, whatever is asked."""
    return {
        c.ATTEMPT: max(one.attempt for one in said),
        c.PROMPT_TOKENS: sum(one.completion.prompt_tokens for one in said),
        c.OUTPUT_TOKENS: sum(len(one.completion.output_ids) for one in said),
    }
