"""Turns prepared rows into the token ids of their answers, with one engine that all calls share.

Error rows pass by. A row's id and the hash of its media go through the engine with its tensors, and
are compared with the row when the answer comes back. Texts are not known here.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.batching.memory import out_of_memory
from model.config import MRopeRule
from model.engine import Completion, Request
from model.inputs import VisualInput, VisualKind
from model.media.image_rules import ImageRules
from model.parallel.shards import VisionSplit
from model.requests import failed
from model.sampling import Sampling
from pipeline.batcher import Answer, Batcher
from pipeline.faults import BrokenEngineError, IdentityError
from pipeline.records import (
    RowFailure,
    failure_columns,
    failures,
    generated_schema,
    replace_columns,
)
from pipeline.replica import load_engine, refuse_broken
from pipeline.seal import row_name, seal
from schemas import columns as c
from schemas.errors import ErrorCode
from schemas.job import JobConfig
from schemas.manifest import ManifestSchema

__all__ = ["BrokenEngineError", "Generate", "GenerateRules", "IdentityError", "row_seed"]

# Requests that the engine has at once, per row that runs: the others wait for a row to be free.
_AHEAD = 2


@dataclass(frozen=True)
class GenerateRules:
    """How answers are made. threads: of the CPU, of each rank of an engine without a GPU.

    sampling: of every row, except that each row has a seed of its own, made of this one and its id.
    mrope: how the positions of videos are counted. ranks: processes that share the model; vision:
    how they share its vision tower. step_s: as of `Batcher`.
    """

    sampling: Sampling
    dtype: str
    device: str
    batch_rows: int
    threads: int
    mrope: MRopeRule = "original"
    ranks: int = 1
    vision: VisionSplit = "data"
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
            vision=job.resources.vision_split,
            step_s=job.limits.step_timeout_s,
        )


@dataclass(frozen=True)
class _Answer:
    completion: Completion
    attempt: int
    failure: RowFailure | None = None


class Generate:
    """The stage. May be called by several threads at once: their rows share the engine.

    on_end: called in another thread when the engine has lost a rank, whether or not a call waits;
    None: the calls raise it.
    """

    def __init__(
        self,
        manifest: ManifestSchema,
        rules: GenerateRules,
        checkpoint: Path,
        count: Callable[[int], None],
        on_end: Callable[[BrokenEngineError], None] | None = None,
    ) -> None:
        torch.set_num_threads(rules.threads)
        self._manifest = manifest
        self._rules = rules
        self._count = count
        self._engine = load_engine(
            checkpoint,
            rules.device,
            rules.ranks,
            rules.vision,
            rules.threads,
            on_end or self._end,
            dtype=rules.dtype,
            batch_rows=rules.batch_rows,
            mrope=rules.mrope,
        )
        self._image_rules = self._engine.rules
        self._batcher = Batcher(
            self._engine, _AHEAD * rules.batch_rows, refuse_broken, rules.step_s
        )

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
        """A table of `prepared_schema` -> one of `generated_schema`.

        Raises IdentityError and BrokenEngineError, which are no row's fault.
        """
        found = failures(table)
        healthy = [number for number, failure in enumerate(found) if failure is None]
        requests = [
            _request(table, number, self._rules.sampling, self._image_rules) for number in healthy
        ]
        answers: list[_Answer | None] = [None] * table.num_rows
        outcomes = self._batcher(requests)
        for number, request, outcome in zip(healthy, requests, outcomes, strict=True):
            answer = _judged(request, outcome)
            _check_identity(request, answer.completion, _name(table, number))
            answers[number] = answer
            found[number] = answer.failure
        self._count(table.num_rows)
        columns = {**_columns(answers), **failure_columns(found)}
        return replace_columns(table, columns, generated_schema(self._manifest))


def _judged(request: Request, answer: Answer) -> _Answer:
    """The answer with the row's failure, if it is one."""
    done, error = answer.completion, answer.error
    if done is None:
        code = ErrorCode.ENGINE_OOM if error and out_of_memory(error) else ErrorCode.ENGINE_FAILED
        failure = RowFailure(code.value, f"{type(error).__name__}: {error}")
        return _Answer(failed(request, failure.message), answer.attempt, failure)
    if done.finish_reason != "error":
        return _Answer(done, answer.attempt)
    message = done.error or "the engine gave no answer and no reason"
    if done.out_of_memory:
        # The engine has tried it alone by itself.
        return _Answer(done, 2, RowFailure(ErrorCode.ENGINE_OOM.value, message))
    return _Answer(done, answer.attempt, RowFailure(ErrorCode.ENGINE_FAILED.value, message))


def _name(table: pa.Table, number: int) -> str:
    columns = (c.ROW, c.SHA256, c.ID)
    return row_name(*(table[name][number].as_py() for name in columns))


def row_seed(seed: int, row_id: object) -> int:
    """The seed of one row, 0 to 2^63 - 1: the same in every run, and another for every id."""
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1


def _check_identity(request: Request, completion: Completion, name: str) -> None:
    tokens = sum(visual.tokens for visual in request.visuals)
    expected = (name, len(request.input_ids), tokens)
    found = (completion.id, completion.prompt_tokens, completion.visual_tokens)
    if found != expected:
        raise IdentityError(
            f"an answer came back to the wrong row: found (id, prompt tokens, visual tokens) = "
            f"{found}, expected {expected}"
        )


def _request(
    table: pa.Table, number: int, sampling: Sampling, rules: Mapping[VisualKind, ImageRules]
) -> Request:
    name = _name(table, number)
    patches = np.frombuffer(table[c.PATCHES][number].as_buffer(), np.uint8)
    grid = table[c.GRID_THW][number].as_py()
    ids = table[c.INPUT_IDS][number].as_py()
    found, expected = seal(name, ids, grid, patches), table[c.TENSOR_SEAL][number].as_py()
    if found != expected:
        raise IdentityError(
            f"{name}: the tensors are not those that were prepared for this row: found the seal "
            f"{found}, expected {expected}"
        )
    kinds: list[VisualKind] = table[c.MEDIA_KINDS][number].as_py()
    visuals = []
    start = 0
    for medium, kind in enumerate(kinds):
        t, h, w = grid[3 * medium : 3 * medium + 3]
        width = rules[kind].patch_values(kind)
        stop = start + t * h * w * width
        # A copy: the object store's memory is read-only, which torch has no notion of.
        part = torch.from_numpy(patches[start:stop].copy())
        cut = part.reshape(t * h * w, width)
        visuals.append(VisualInput(kind, cut, (t, h, w), rules[kind].merge_size))
        start = stop
    if start != patches.size:
        raise IdentityError(f"{name}: {patches.size} bytes for a grid of {grid}")
    seed = row_seed(sampling.seed, table[c.ID][number].as_py())
    sampling = replace(sampling, seed=seed)
    # The hash of a video's file says nothing of which seconds the row shows.
    sha256 = table[c.SHA256][number].as_py()
    known = sha256 is not None and kinds == ["image"]
    names = (f"{sha256} {visuals[0].grid_thw}",) if known else None
    return Request(name, ids, tuple(visuals), sampling, media_names=names)


def _columns(answers: Sequence[_Answer | None]) -> dict[str, list[Any]]:
    def each(value: Callable[[_Answer], Any]) -> list[Any]:
        return [None if answer is None else value(answer) for answer in answers]

    return {
        c.ATTEMPT: [1 if answer is None else answer.attempt for answer in answers],
        c.FINISH_REASON: [
            "error" if answer is None else answer.completion.finish_reason for answer in answers
        ],
        c.PROMPT_TOKENS: each(lambda answer: answer.completion.prompt_tokens),
        c.OUTPUT_TOKENS: each(lambda answer: len(answer.completion.output_ids)),
        c.MEAN_LOGPROB: each(
            lambda answer: None if answer.failure else answer.completion.mean_logprob
        ),
        c.OUTPUT_IDS: each(lambda answer: None if answer.failure else answer.completion.output_ids),
    }
