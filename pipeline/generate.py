"""Turns prepared rows into the token ids of their answers, with one engine and full batches.

Error rows pass by. A row's id and the hash of its media go through the engine with its tensors, and
are compared with the row when the answer comes back. Texts are not known here.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.config import MRopeRule
from model.engine import Completion, Engine, Request
from model.image_rules import ImageRules
from model.inputs import VisualInput, VisualKind
from model.sampling import Sampling
from pipeline.batcher import Batcher
from pipeline.records import (
    ROW_FILE,
    ROW_INDEX,
    RowFailure,
    failure_columns,
    failures,
    generated_schema,
    replace_columns,
)
from schemas import columns as c
from schemas.errors import ErrorCode
from schemas.job import JobConfig
from schemas.manifest import ManifestSchema


class IdentityError(RuntimeError):
    """An answer does not belong to the row that it came back to. The job must stop."""


class BrokenEngineError(RuntimeError):
    """The device is in a state in which every further row would fail. The job must stop."""


@dataclass(frozen=True)
class GenerateRules:
    """How answers are made. threads: of the CPU, for an engine without a GPU.

    sampling: of every row, except that each row has a seed of its own, made of this one and its id.
    mrope: how the positions of videos are counted.
    """

    sampling: Sampling
    dtype: str
    device: str
    batch_rows: int
    threads: int
    mrope: MRopeRule = "original"

    @classmethod
    def of(cls, job: JobConfig, threads: int, on_gpu: bool) -> "GenerateRules":
        """What `job` says of generation, on the device that the replica has."""
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
            batch_rows=job.resources.batch_rows,
            threads=threads,
            mrope=job.video.mrope,
        )


@dataclass(frozen=True)
class _Answer:
    completion: Completion
    attempt: int
    failure: RowFailure | None = None


class Generate:
    """The stage. May be called by several threads at once: their rows share the batches."""

    def __init__(
        self,
        manifest: ManifestSchema,
        rules: GenerateRules,
        checkpoint: Path,
        count: Callable[[int], None],
    ) -> None:
        torch.set_num_threads(rules.threads)
        self._manifest = manifest
        self._rules = rules
        self._count = count
        self._engine = Engine.load(
            checkpoint, rules.device, rules.dtype, rules.batch_rows, mrope=rules.mrope
        )
        self._image_rules = self._engine.rules
        self._batcher = Batcher(self._answer, rules.batch_rows)

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end answers: the job's, or else the checkpoint's."""
        wish = self._rules.sampling.stop
        return self._engine.defaults.stop if wish is None else wish

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
        for number, request, answer in zip(healthy, requests, self._batcher(requests), strict=True):
            _check_identity(request, answer.completion, _name(table, number))
            answers[number] = answer
            found[number] = answer.failure
        self._count(table.num_rows)
        columns = {**_columns(answers), **failure_columns(found)}
        return replace_columns(table, columns, generated_schema(self._manifest))

    def _answer(self, requests: Sequence[Request]) -> list[_Answer]:
        """One answer for each request; what fails together is tried alone, once."""
        try:
            return [_Answer(one, 1, _failure(one)) for one in self._run(requests)]
        except IdentityError:
            raise
        except Exception as error:  # noqa: BLE001 - the engine's own, of any kind
            _refuse_broken(error)
        return [self._alone(request) for request in requests]

    def _alone(self, request: Request) -> _Answer:
        try:
            completion = self._run([request])[0]
        except IdentityError:
            raise
        except Exception as error:  # noqa: BLE001 - as above; now it is this row's fault
            _refuse_broken(error)
            memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
            code = ErrorCode.ENGINE_OOM if memory else ErrorCode.ENGINE_FAILED
            failure = RowFailure(code.value, f"{type(error).__name__}: {error}")
            tokens = sum(visual.tokens for visual in request.visuals)
            prompt = len(request.input_ids)
            return _Answer(Completion(request.id, [], "error", prompt, tokens, 0.0), 2, failure)
        return _Answer(completion, 2, _failure(completion))

    def _run(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests. Raises IdentityError unless they match."""
        found: dict[str, Completion] = {}
        for completion in self._engine.generate(requests):
            if completion.id in found:
                raise IdentityError(f"the engine answered {completion.id} twice")
            found[completion.id] = completion
        if found.keys() != {request.id for request in requests}:
            lost = sorted({request.id for request in requests} ^ found.keys())
            raise IdentityError(f"the engine's answers do not match its requests: {lost[:3]}")
        return [found[request.id] for request in requests]


def _name(table: pa.Table, number: int) -> str:
    """What travels with the tensors: ordinal, id and content hash of the row."""
    row = table[c.ROW][number].as_py()
    parts = (row[ROW_FILE], row[ROW_INDEX], table[c.SHA256][number], table[c.ID][number])
    return "/".join(str(part) for part in parts)


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


def _refuse_broken(error: Exception) -> None:
    """After most CUDA errors every further call of the process fails too; running out of memory is
    not one of them.
    """
    if isinstance(error, torch.OutOfMemoryError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    elif "CUDA error" in str(error):
        raise BrokenEngineError(f"the GPU cannot be used any more: {error}") from error


def _failure(completion: Completion) -> RowFailure | None:
    if completion.finish_reason != "error":
        return None
    message = completion.error or "the engine gave no answer and no reason"
    return RowFailure(ErrorCode.ENGINE_FAILED.value, message)


def _request(
    table: pa.Table, number: int, sampling: Sampling, rules: Mapping[VisualKind, ImageRules]
) -> Request:
    patches = np.frombuffer(table[c.PATCHES][number].as_buffer(), np.uint8)
    grid = table[c.GRID_THW][number].as_py()
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
        raise IdentityError(f"{_name(table, number)}: {patches.size} bytes for a grid of {grid}")
    ids = table[c.INPUT_IDS][number].as_py()
    seed = row_seed(sampling.seed, table[c.ID][number].as_py())
    sampling = replace(sampling, seed=seed)
    return Request(_name(table, number), ids, tuple(visuals), sampling)


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
