"""Turns a row's prompts into requests, and the token ids of the answers into texts.

A prompt whose answers are to be JSON brings a schema: see schemas/json_schema.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mediamill.model.generation.stopping import before_stop
from mediamill.model.requests import Request
from mediamill.model.sampling import Sampling
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.tasks.json_answers import sampling_of, values_of
from mediamill.pipeline.tasks.prepared_row import PreparedRow
from mediamill.pipeline.tasks.task import RequestResult
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode
from mediamill.schemas.task import Question, Task


class GenerateText:
    """See `Asking`. sampling: of every row, which has a seed of its own, made of this one and its
    id. decode: token ids to text, without control tokens. stop: strings before which texts end.
    """

    def __init__(
        self,
        task: Task,
        sampling: Sampling,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
    ) -> None:
        self._task = task
        self._sampling = sampling
        self._decode = decode
        self._stop = stop

    def requests(self, row: PreparedRow) -> list[Request]:
        return [
            self._request(row, question, ids)
            for question, ids in zip(self._task.questions, row.prompts, strict=True)
        ]

    def _request(
        self, row: PreparedRow, question: Question, ids: Sequence[int], attempt: int = 1
    ) -> Request:
        own = f"{row.row_id}" if question.name is None else f"{row.row_id}/{question.name}"
        sampling = sampling_of(question, self._sampling, self._task.json_answers, own, attempt)
        name = row.name if question.name is None else f"{row.name}/{question.name}"
        return Request(name, ids, row.visuals, sampling, media_names=row.media_names)

    def again(self, row: PreparedRow, number: int, said: RequestResult) -> Request | None:
        question = self._task.questions[number]
        if question.schema is None or said.asked > self._task.json_answers.retries:
            return None
        _, failure = self._plain(question, said)
        if failure is None or failure.code != ErrorCode.JSON_INVALID.value:
            return None
        return self._request(row, question, row.prompts[number], said.asked + 1)

    def answer(
        self, row: PreparedRow, said: list[RequestResult]
    ) -> tuple[dict[str, Any], RowFailure | None]:
        values: dict[str, Any] = {}
        first: RowFailure | None = None
        for question, one in zip(self._task.questions, said, strict=True):
            plain, failure = self._plain(question, one)
            values |= {question.column(name): value for name, value in plain.items()}
            if failure is not None and first is None:
                named = "" if question.name is None else f"{question.name}: "
                first = RowFailure(failure.code, f"{named}{failure.message}")
        if not self._task.is_named:  # the whole row's say the same
            for name in (c.PROMPT_TOKENS, c.OUTPUT_TOKENS, c.ERROR_CODE, c.ERROR_MESSAGE):
                values.pop(name, None)
        return values, first

    def _plain(
        self, question: Question, said: RequestResult
    ) -> tuple[dict[str, Any], RowFailure | None]:
        """The values of one question by their plain names, and what is wrong with the answer."""
        completion, failure = said.completion, said.failure
        text = None
        if failure is None:
            try:
                text = before_stop(self._decode(completion.output_ids), self._stop)
            except Exception as error:  # noqa: BLE001 - a tokenizer's own; one row's ids caused it
                message = f"the answer's token ids are no text: {error}"
                failure = RowFailure(ErrorCode.PARSE_INVALID.value, message)
        fields: Mapping[str, Any] = {}
        if text is not None:
            fields, failure = values_of(question, text, completion)
        values = {
            c.TEXT: text,
            c.FINISH_REASON: completion.finish_reason,
            c.PROMPT_TOKENS: completion.prompt_tokens,
            c.OUTPUT_TOKENS: len(completion.output_ids),
            c.MEAN_LOGPROB: None if said.failure else completion.mean_logprob,
            c.ERROR_CODE: None if failure is None else failure.code,
            c.ERROR_MESSAGE: None if failure is None else failure.message,
            **fields,
        }
        return values, failure
