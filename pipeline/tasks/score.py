"""Scores texts: computes how likely each is as the answer to a row's prompt, and ranks them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediamill.model.errors import ModelError
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.storage.storage import Place
from mediamill.pipeline.tasks.chats import check_prompt, row_chat
from mediamill.pipeline.tasks.task import HandlerOptions, TaskHandler, TaskKind
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, JobError, RowError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.job_columns import check_text_column
from mediamill.schemas.job_tasks import ScoreConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import ScoreTask

if TYPE_CHECKING:
    from mediamill.model.requests import Request, Score
    from mediamill.pipeline.tasks.prepared_row import PreparedRow
    from mediamill.pipeline.tasks.request_result import RequestResult

END_OF_TURN = "<|im_end|>"


class ScoreKind(TaskKind):
    """See `TaskKind`."""

    def __init__(self, task: ScoreTask) -> None:
        self._task = task

    def resolve(self, checkpoint: Place) -> ScoreTask:
        config = self._task.score
        try:
            path = Path(checkpoint.path) if checkpoint.is_local else checkpoint.url
            tokenizer = Tokenizer.load(path)
        except ModelError as error:
            raise JobError(str(error)) from error
        if config.end_token and END_OF_TURN not in tokenizer.special:
            raise JobError(
                f"score.end_token: found true, and the checkpoint has no token {END_OF_TURN}, "
                "which would end an answer: expected false"
            )
        for number, text in enumerate(config.texts or (), start=1):
            if control := tokenizer.control_tokens_in(text):
                raise JobError(
                    f"score.texts: found the control string {control[0]} in text {number}, which "
                    "only the chat template may write"
                )
        return self._task

    def check_manifest(self, job: JobConfig, manifest: ManifestSchema, where: str) -> None:
        if self._task.score.column is not None:
            check_text_column(manifest, self._task.score.column, "score.column", where)
        check_prompt(job, manifest, where)

    def fingerprint(self) -> dict[str, Any]:
        return {"score": self._task.score.model_dump(mode="json")}

    def chats(
        self, row: Mapping[str, Any], prompt: str | None, system: str | None
    ) -> list[Mapping[str, Any]]:
        return [row_chat(row, prompt, system)]

    def texts(self, row: Mapping[str, Any]) -> Sequence[str]:
        return texts_to_score(row, self._task.score)

    def handler(self, options: HandlerOptions) -> TaskHandler:
        return ScoreTexts(self._task, options.end_token)


class ScoreTexts(TaskHandler):
    """See `TaskHandler`. end_token: follows each text if the task says so."""

    def __init__(self, task: ScoreTask, end_token: int | None) -> None:
        """Raises ModelError if the task needs the end token and the checkpoint has none."""
        if task.score.end_token and end_token is None:
            raise ModelError(
                "score.end_token: found true, and the checkpoint's tokenizer has no token that "
                "ends an answer, expected false"
            )
        self._config = task.score
        self._end = [end_token] if task.score.end_token and end_token is not None else []

    def requests(self, row: "PreparedRow") -> "list[Request]":
        from mediamill.model.requests import Request

        return [
            Request(
                row.name,
                row.prompts[0],
                row.visuals,
                mode="score",
                continuations=[[*ids, *self._end] for ids in row.texts],
                media_names=row.media_names,
            )
        ]

    def answer(
        self, row: "PreparedRow", results: "list[RequestResult]"
    ) -> tuple[dict[str, Any], RowFailure | None]:
        [result] = results
        values: dict[str, Any] = {c.FINISH_REASON: result.completion.finish_reason}
        if result.failure is not None:
            return values, result.failure
        scores = result.completion.scores
        if not all(math.isfinite(score.total) for score in scores):
            message = "log-probabilities are not finite numbers: try resources.dtype=float32"
            failure = RowFailure(ErrorCode.ENGINE_FAILED.value, message)
            return {c.FINISH_REASON: "error"}, failure
        # The texts are in the row's own columns, so the tables between the stages have no copy.
        texts = texts_to_score(row.values, self._config)
        ranking = ranked(texts, scores, self._config.rank_by)
        best = next(text for text in ranking if text["rank"] == 1)
        return values | {
            c.TEXT: best["text"],
            c.MEAN_LOGPROB: best["mean_logprob"],
            c.PROBABILITY: ranking[0]["probability"] if len(ranking) > 1 else None,
            c.SCORES: ranking,
        }, None


def texts_to_score(row: Mapping[str, Any], config: ScoreConfig) -> Sequence[str]:
    """Returns the job's texts, else the row's own: one, or a list.

    Raises RowError prompt_invalid if the row has no text, or an empty one.
    """
    if config.texts is not None:
        return config.texts
    value = row[config.column or ""]
    texts = [value] if isinstance(value, str) else value
    problem = "null" if texts is None else "an empty list" if not texts else None
    for number, text in enumerate(texts or (), start=1):
        if not text:
            where = f" as text {number} of {len(texts)}" if texts is value else ""
            problem = f"{'null' if text is None else 'an empty text'}{where}"
            break
    if problem is not None:
        raise RowError(
            ErrorCode.PROMPT_INVALID,
            f"{config.column} (score.column): found {problem}, expected a text or a list of texts",
        )
    return list(texts)


def ranked(texts: Sequence[str], scores: "Sequence[Score]", by: str) -> list[dict[str, Any]]:
    """Returns the values of `SCORE_STRUCT` for each text, in the order of the texts.

    by: the log-probability to rank by, "total" or "mean"; of equal texts the first ranks higher.
    `probability` is the softmax over the totals in both cases.
    """
    totals = [score.total for score in scores]
    means = [score.total / max(1, len(score.logprobs)) for score in scores]
    keys = totals if by == "total" else means
    order = sorted(range(len(keys)), key=lambda i: -keys[i])
    ranks = {index: rank for rank, index in enumerate(order, start=1)}
    largest = max(totals)
    weights = [math.exp(total - largest) for total in totals]
    weight_sum = sum(weights)
    return [
        {
            "text": text,
            "logprob": score.total,
            "mean_logprob": means[i],
            "tokens": len(score.logprobs),
            "token_logprobs": score.logprobs,
            "rank": ranks[i],
            "probability": weights[i] / weight_sum,
        }
        for i, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]
