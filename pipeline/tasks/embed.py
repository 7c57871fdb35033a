"""Embeds rows: computes one vector for the prompt and media of a row."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.storage.storage import Place
from mediamill.pipeline.tasks.chats import row_chat
from mediamill.pipeline.tasks.embed_checkpoint import declared_embedding
from mediamill.pipeline.tasks.task import HandlerOptions, TaskHandler, TaskKind
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, JobError, RowError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import EmbedTask

if TYPE_CHECKING:
    from mediamill.model.requests import Request
    from mediamill.pipeline.tasks.prepared_row import PreparedRow
    from mediamill.pipeline.tasks.request_result import RequestResult


class EmbedKind(TaskKind):
    """See `TaskKind`."""

    def __init__(self, task: EmbedTask) -> None:
        self._task = task

    def resolve(self, checkpoint: Place) -> EmbedTask:
        """Returns the task with a pool that is not "auto", and with `texts_alike`: whether texts
        and media have one vector space, because the checkpoint was trained with this pool.

        Raises JobError for `embed.pool: auto` and a checkpoint whose pooling is not implemented.
        """
        pool = self._task.embed.pool
        try:
            declared = declared_embedding(checkpoint)
        except JobError:
            if pool == "auto":
                raise
            declared = None
        if pool == "auto":
            pool = "vision_tower" if declared is None else declared.pool
        alike = declared is not None and declared.pool == pool
        (question,) = self._task.questions
        if alike and declared is not None and question.prompt is None:
            question = replace(question, prompt=declared.prompt)
        embed = self._task.embed.model_copy(update={"pool": pool})
        return replace(self._task, embed=embed, questions=(question,), texts_alike=alike)

    def check_manifest(self, job: JobConfig, manifest: ManifestSchema, where: str) -> None:
        """A vector needs no prompt."""

    def fingerprint(self) -> dict[str, Any]:
        embed = self._task.embed.model_dump(mode="json")
        return {"embed": embed, "prompt": self._task.questions[0].prompt}

    def chats(
        self, row: Mapping[str, Any], prompt: str | None, system: str | None
    ) -> list[Mapping[str, Any]]:
        if not self._task.texts_alike and c.URI not in row and not row.get(c.MEDIA):
            raise RowError(
                ErrorCode.MEDIA_EMPTY,
                "found a row without media, expected some: the checkpoint does not say that "
                f"vectors of texts, pooled as '{self._task.embed.pool}' (embed.pool), lie in the "
                "same space",
            )
        if prompt is None:
            prompt = self._task.questions[0].prompt or ""
        return [row_chat(row, prompt, system)]

    def handler(self, options: HandlerOptions) -> TaskHandler:
        return Embed(self._task)


class Embed(TaskHandler):
    """See `TaskHandler`. task: as `EmbedKind.resolve` returns it."""

    def __init__(self, task: EmbedTask) -> None:
        if task.embed.pool == "auto":
            raise ValueError("embed.pool is auto, expected what the checkpoint makes of it")
        self._pool, self._normalize = task.embed.pool, task.embed.normalize

    def requests(self, row: "PreparedRow") -> "list[Request]":
        from mediamill.model.requests import Request

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

    def answer(
        self, row: "PreparedRow", results: "list[RequestResult]"
    ) -> tuple[dict[str, Any], RowFailure | None]:
        [result] = results
        vector, failure = result.completion.embedding, result.failure
        if vector is not None and not all(map(math.isfinite, vector)):
            message = "the vector holds numbers that are not finite: try resources.dtype=float32"
            vector, failure = None, RowFailure(ErrorCode.ENGINE_FAILED.value, message)
        reason = "error" if failure else result.completion.finish_reason
        return {c.EMBEDDING: vector, c.FINISH_REASON: reason}, failure
