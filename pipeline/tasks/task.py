"""Turns what the engine's threads answer into what a row can be told: an answer, or a failure."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from mediamill.model.engine_core.kv_budget import out_of_memory
from mediamill.model.requests import Completion, Request, failed
from mediamill.pipeline.faults import IdentityError
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.replica.engine_thread import EngineResult
from mediamill.pipeline.tasks.prepared_row import PreparedRow
from mediamill.schemas.errors import ErrorCode


@dataclass(frozen=True)
class RequestResult:
    """What became of a request of a row. failure: there is no answer then.

    asked: how often it was asked, with what `again` gave; attempt: also what the engine tried anew.
    """

    completion: Completion
    attempt: int = 1
    failure: RowFailure | None = None
    asked: int = 1


class TaskHandler(Protocol):
    """What is asked of each row, and what its answers make of it. One for each kind of task."""

    def requests(self, row: PreparedRow) -> list[Request]:
        """All with different ids; at least one."""

    def again(self, row: PreparedRow, number: int, said: RequestResult) -> Request | None:
        """A request to take the place of the row's request of this number, whose answer will not
        do; None where it will, or where nothing is to be tried any more.
        """

    def answer(
        self, row: PreparedRow, said: list[RequestResult]
    ) -> tuple[dict[str, Any], RowFailure | None]:
        """By column the row's values, as far as there are any, and what is wrong with the row.

        said: what became of each of its requests.
        """


def classify(request: Request, answer: EngineResult, attempt: int) -> RequestResult:
    """What an answer is to its row. attempt: 1 for the first such request of the row.

    Raises IdentityError for the answer to something else.
    """
    done, error = answer.completion, answer.error
    if done is None:
        code = ErrorCode.ENGINE_OOM if error and out_of_memory(error) else ErrorCode.ENGINE_FAILED
        failure = RowFailure(code.value, f"{type(error).__name__}: {error}")
        said = RequestResult(failed(request, failure.message), answer.attempt, failure)
    elif done.finish_reason != "error":
        said = RequestResult(done, max(attempt, answer.attempt))
    else:
        message = done.error or "the engine gave no answer and no reason"
        code = ErrorCode.ENGINE_OOM if done.out_of_memory else ErrorCode.ENGINE_FAILED
        # What was out of memory, the engine has tried alone by itself.
        tries = 2 if done.out_of_memory else answer.attempt
        said = RequestResult(done, max(attempt, tries), RowFailure(code.value, message))
    _check_identity(request, said.completion)
    return replace(said, asked=attempt)


def _check_identity(request: Request, completion: Completion) -> None:
    expected = (request.id, len(request.input_ids), request.visual_tokens)
    found = (completion.id, completion.prompt_tokens, completion.visual_tokens)
    if found != expected:
        raise IdentityError(
            f"an answer came back to the wrong row: found (id, prompt tokens, visual tokens) = "
            f"{found}, expected {expected}"
        )
