"""Turns a row's prompt and texts into a request to score them, and its scores into columns."""

import math
from collections.abc import Sequence
from typing import Any

from mediamill.model.errors import ModelError
from mediamill.model.requests import Request, Score
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.tasks.prepared_row import PreparedRow
from mediamill.pipeline.tasks.score_texts import texts_to_score
from mediamill.pipeline.tasks.task import RequestResult
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode
from mediamill.schemas.task import Task


class ScoreTexts:
    """See `Asking`. end_token: as of `asking`; it follows each text where the task says so."""

    def __init__(self, task: Task, end_token: int | None) -> None:
        """Raises ModelError for a checkpoint without the token that the task wants."""
        if task.score.end_token and end_token is None:
            raise ModelError(
                "score.end_token: found true, and the checkpoint's tokenizer has no token that "
                "ends an answer, expected false"
            )
        self._config = task.score
        self._end = [end_token] if task.score.end_token and end_token is not None else []

    def requests(self, row: PreparedRow) -> list[Request]:
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

    def again(self, row: PreparedRow, number: int, said: RequestResult) -> Request | None:
        return None

    def answer(
        self, row: PreparedRow, said: list[RequestResult]
    ) -> tuple[dict[str, Any], RowFailure | None]:
        [one] = said
        values: dict[str, Any] = {c.FINISH_REASON: one.completion.finish_reason}
        if one.failure is not None:
            return values, one.failure
        scores = one.completion.scores
        if not all(math.isfinite(score.total) for score in scores):
            text = "log-probabilities are not finite numbers: try resources.dtype=float32"
            failure = RowFailure(ErrorCode.ENGINE_FAILED.value, text)
            return {c.FINISH_REASON: "error"}, failure
        found = ranked(texts_to_score(row.values, self._config), scores, self._config.rank_by)
        best = next(one for one in found if one["rank"] == 1)
        return values | {
            c.TEXT: best["text"],
            c.MEAN_LOGPROB: best["mean_logprob"],
            c.PROBABILITY: found[0]["probability"] if len(found) > 1 else None,
            c.SCORES: found,
        }, None


def ranked(texts: Sequence[str], scores: Sequence[Score], by: str) -> list[dict[str, Any]]:
    """Values of `SCORE_STRUCT` of each text, in order.

    by: "total" or "mean", the log-probability that makes the rank; of equals the first is before.
    `probability` is the softmax over the totals, whatever makes the rank.
    """
    totals = [score.total for score in scores]
    means = [score.total / max(1, len(score.logprobs)) for score in scores]
    keys = totals if by == "total" else means
    order = sorted(range(len(keys)), key=lambda i: -keys[i])
    ranks = {place: rank for rank, place in enumerate(order, start=1)}
    top = max(totals)
    weights = [math.exp(total - top) for total in totals]
    whole = sum(weights)
    return [
        {
            "text": text,
            "logprob": score.total,
            "mean_logprob": means[i],
            "tokens": len(score.logprobs),
            "token_logprobs": score.logprobs,
            "rank": ranks[i],
            "probability": weights[i] / whole,
        }
        for i, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]
