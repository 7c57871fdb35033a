"""Classifies an engine result as an answer or a row error."""

from dataclasses import dataclass, replace

from mediamill.model.engine_core.kv_budget import out_of_memory
from mediamill.model.requests import Completion, Request, failed
from mediamill.pipeline.faults import IdentityError
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.replica.engine_thread import EngineResult
from mediamill.schemas.errors import ErrorCode


@dataclass(frozen=True)
class RequestResult:
    """The result of a row's request. failure: None if there is an answer.

    attempt: how often it was tried, by the task handler or the engine.
    asked: how often the task handler asked, with `TaskHandler.retry`.
    """

    completion: Completion
    attempt: int = 1
    failure: RowFailure | None = None
    asked: int = 1


def classify(request: Request, engine_result: EngineResult, asked: int) -> RequestResult:
    """Returns the result of a request. asked: 1 for the first of these requests of a row.

    Raises IdentityError if the result belongs to another request.
    """
    completion, error = engine_result.completion, engine_result.error
    if completion is None:
        code = ErrorCode.ENGINE_OOM if error and out_of_memory(error) else ErrorCode.ENGINE_FAILED
        failure = RowFailure(code.value, f"{type(error).__name__}: {error}")
        completion = failed(request, failure.message)
        result = RequestResult(completion, engine_result.attempt, failure)
    elif completion.finish_reason != "error":
        result = RequestResult(completion, max(asked, engine_result.attempt))
    else:
        message = completion.error or "the engine gave no answer and no reason"
        code = ErrorCode.ENGINE_OOM if completion.out_of_memory else ErrorCode.ENGINE_FAILED
        # A request that runs out of memory among others is tried again alone by the engine.
        attempt = 2 if completion.out_of_memory else engine_result.attempt
        result = RequestResult(completion, max(asked, attempt), RowFailure(code.value, message))
    _check_identity(request, completion)
    return replace(result, asked=asked)


def _check_identity(request: Request, completion: Completion) -> None:
    expected = (request.id, len(request.input_ids), request.visual_tokens)
    answered = (completion.id, completion.prompt_tokens, completion.visual_tokens)
    if answered != expected:
        raise IdentityError(
            f"an answer came back to the wrong row: found (id, prompt tokens, visual tokens) = "
            f"{answered}, expected {expected}"
        )
