"""Turns a row's prompt into a request for its vector, and the vector into a column."""

import math
from typing import Any

from mediamill.model.requests import Request
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.tasks.prepared_row import PreparedRow
from mediamill.pipeline.tasks.task import RequestResult
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode
from mediamill.schemas.task import Task


class Embed:
    """See `Asking`. task: with a pool that is not "auto": see embed_checkpoint.py."""

    def __init__(self, task: Task) -> None:
        if task.embed.pool == "auto":
            raise ValueError("embed.pool is auto, expected what the checkpoint makes of it")
        self._pool, self._normalize = task.embed.pool, task.embed.normalize

    def requests(self, row: PreparedRow) -> list[Request]:
        return [
            Request(
                row.name,
                row.prompts[0],
                row.visuals,
                mode="embed",
                pool=self._pool,
                normalize=self._normalize,
                media_names=row.media_names,
            )
        ]

    def again(self, row: PreparedRow, number: int, said: RequestResult) -> Request | None:
        return None

    def answer(
        self, row: PreparedRow, said: list[RequestResult]
    ) -> tuple[dict[str, Any], RowFailure | None]:
        [one] = said
        vector, failure = one.completion.embedding, one.failure
        if vector is not None and not all(map(math.isfinite, vector)):
            text = "the vector holds numbers that are not finite: try resources.dtype=float32"
            vector, failure = None, RowFailure(ErrorCode.ENGINE_FAILED.value, text)
        reason = "error" if failure else one.completion.finish_reason
        return {c.EMBEDDING: vector, c.FINISH_REASON: reason}, failure
