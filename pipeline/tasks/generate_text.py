"""Generates text for a row: one answer to each question, as text or as JSON by a schema."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mediamill.model.generation.stopping import before_stop
from mediamill.pipeline.quality.findings import ends_in_loop
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.storage.storage import Place
from mediamill.pipeline.tasks.chats import check_prompt, row_chat, row_system
from mediamill.pipeline.tasks.json_answers import (
    check_schemas,
    parse_answer,
    question_sampling,
    sampled,
)
from mediamill.pipeline.tasks.task import HandlerOptions, TaskHandler, TaskKind
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, JobError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import Question, TextTask

if TYPE_CHECKING:
    from mediamill.model.requests import Request
    from mediamill.pipeline.tasks.prepared_row import PreparedRow
    from mediamill.pipeline.tasks.request_result import RequestResult


class TextKind(TaskKind):
    """See `TaskKind`."""

    def __init__(self, task: TextTask) -> None:
        self._task = task

    def resolve(self, checkpoint: Place) -> TextTask:
        check_schemas(self._task)
        return self._task

    def check_manifest(self, job: JobConfig, manifest: ManifestSchema, where: str) -> None:
        if not self._task.is_named:
            check_prompt(job, manifest, where)
            return
        columns = [name for name in (c.PROMPT, c.MESSAGES) if name in manifest.optional]
        if columns:
            raise JobError(
                f"prompts: found them beside the column '{columns[0]}' of {where}, which would not "
                "be asked: expected one of them"
            )

    def fingerprint(self) -> dict[str, Any]:
        # The text of a schema, because the properties of an answer follow its order.
        schemas = [q.schema.text for q in self._task.questions if q.schema is not None]
        parts: dict[str, Any] = {"schemas": schemas} if schemas else {}
        if schemas or self._task.is_named:
            parts["json_answers"] = self._task.json_answers.model_dump(mode="json")
        return parts

    def chats(
        self, row: Mapping[str, Any], prompt: str | None, system: str | None
    ) -> list[Mapping[str, Any]]:
        if not self._task.is_named:
            return [row_chat(row, prompt, system)]
        system = row_system(row, system)
        return [{"prompt": question.prompt, "system": system} for question in self._task.questions]

    def handler(self, options: HandlerOptions) -> TaskHandler:
        return GenerateText(self._task, options)


class GenerateText(TaskHandler):
    """See `TaskHandler`."""

    def __init__(self, task: TextTask, options: HandlerOptions) -> None:
        self._task, self._options = task, options

    def requests(self, row: "PreparedRow") -> "list[Request]":
        return [
            self._request(row, question, ids)
            for question, ids in zip(self._task.questions, row.prompts, strict=True)
        ]

    def _request(
        self, row: "PreparedRow", question: Question, ids: Sequence[int], attempt: int = 1
    ) -> "Request":
        from mediamill.model.requests import Request

        suffix = "" if question.name is None else f"/{question.name}"
        sampling = question_sampling(
            question,
            self._options.sampling,
            self._task.json_answers,
            f"{row.row_id}{suffix}",
            attempt,
        )
        if attempt > 1 and question.schema is None:
            retries = self._options.retries
            sampling = sampled(sampling, retries.temperature)
            sampling = replace(sampling, repetition_penalty=retries.repetition_penalty)
        name = f"{row.name}{suffix}"
        return Request(name, ids, row.visuals, sampling, media_names=row.media_names)

    def retry(self, row: "PreparedRow", number: int, result: "RequestResult") -> "Request | None":
        question = self._task.questions[number]
        if question.schema is None:
            if result.asked > self._options.retries.again or not self._is_bad(result):
                return None
            return self._request(row, question, row.prompts[number], result.asked + 1)
        if result.asked > self._task.json_answers.retries:
            return None
        _, failure = self._values(question, result)
        if failure is None or failure.code != ErrorCode.JSON_INVALID.value:
            return None
        return self._request(row, question, row.prompts[number], result.asked + 1)

    def _is_bad(self, result: "RequestResult") -> bool:
        """Whether an answer is cut off, or repeats itself."""
        if result.failure is not None:
            return False
        if result.completion.finish_reason in ("length", "loop"):
            return True
        return ends_in_loop(self._options.decode(result.completion.output_ids))

    def answer(
        self, row: "PreparedRow", results: "list[RequestResult]"
    ) -> tuple[dict[str, Any], RowFailure | None]:
        values: dict[str, Any] = {}
        first_failure: RowFailure | None = None
        for question, result in zip(self._task.questions, results, strict=True):
            plain, failure = self._values(question, result)
            values |= {question.column(name): value for name, value in plain.items()}
            if failure is not None and first_failure is None:
                prefix = "" if question.name is None else f"{question.name}: "
                first_failure = RowFailure(failure.code, f"{prefix}{failure.message}")
        if not self._task.is_named:  # the columns of the whole row hold the same
            for name in (c.PROMPT_TOKENS, c.OUTPUT_TOKENS, c.ERROR_CODE, c.ERROR_MESSAGE):
                values.pop(name, None)
        return values, first_failure

    def _values(
        self, question: Question, result: "RequestResult"
    ) -> tuple[dict[str, Any], RowFailure | None]:
        """Returns a question's values by plain column name, and the answer's failure."""
        completion, failure = result.completion, result.failure
        text = None
        if failure is None:
            try:
                text = before_stop(self._options.decode(completion.output_ids), self._options.stop)
            except Exception as error:  # noqa: BLE001 - the tokenizer's, caused by this row's ids
                message = f"the answer's token ids are no text: {error}"
                failure = RowFailure(ErrorCode.PARSE_INVALID.value, message)
        properties: Mapping[str, Any] = {}
        if text is not None:
            properties, failure = parse_answer(question, text, completion)
        values = {
            c.TEXT: text,
            c.FINISH_REASON: completion.finish_reason,
            c.PROMPT_TOKENS: completion.prompt_tokens,
            c.OUTPUT_TOKENS: len(completion.output_ids),
            c.MEAN_LOGPROB: None if result.failure else completion.mean_logprob,
            c.ERROR_CODE: None if failure is None else failure.code,
            c.ERROR_MESSAGE: None if failure is None else failure.message,
            **properties,
        }
        return values, failure
