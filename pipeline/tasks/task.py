"""Defines what each kind of task implements: `TaskKind` and `TaskHandler`.

A new kind needs a section in schemas/job_tasks.py and schemas/task.py, a file here with the two
classes, and a case in tasks.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.job import JobConfig
from mediamill.schemas.job_retries import Retries
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import Task

if TYPE_CHECKING:  # the driver and the prepare stage do without torch
    from mediamill.model.requests import Request
    from mediamill.model.sampling import Sampling
    from mediamill.pipeline.tasks.prepared_row import PreparedRow
    from mediamill.pipeline.tasks.request_result import RequestResult


@dataclass(frozen=True)
class HandlerOptions:
    """What a task handler needs of the job and the loaded model.

    sampling: the job's; each row has a seed made of this one and its id.
    decode: token ids to text, without control tokens.
    stop: the strings before which texts end.
    retries: whether and how texts that are cut off, or repeat themselves, are asked for again.
    end_token: the token that ends an answer in a chat; None if the checkpoint has none.
    """

    sampling: "Sampling"
    decode: Callable[[Sequence[int]], str]
    stop: Sequence[str] = ()
    end_token: int | None = None
    retries: Retries = field(default_factory=Retries)


class TaskHandler(Protocol):
    """Makes the requests of a row and its answer, in the generate stage."""

    def requests(self, row: "PreparedRow") -> "list[Request]":
        """Returns the row's requests, at least one, each with an id of its own."""

    def retry(self, row: "PreparedRow", number: int, result: "RequestResult") -> "Request | None":
        """Returns a request to replace the row's request `number`, whose answer is not acceptable.

        Returns None if the answer is acceptable, or no further try is left.
        """
        return None

    def answer(
        self, row: "PreparedRow", results: "list[RequestResult]"
    ) -> tuple[dict[str, Any], RowFailure | None]:
        """Returns the values of the row's columns, and the row's failure or None.

        results: one per request of the row. Columns without a value may be missing.
        """


class TaskKind(Protocol):
    """What the driver and the prepare stage need of a kind of task."""

    def resolve(self, checkpoint: Place) -> Task:
        """Returns the task with the settings that the checkpoint decides.

        Raises JobError for a task that the checkpoint cannot do.
        """

    def check_manifest(self, job: JobConfig, manifest: ManifestSchema, where: str) -> None:
        """Raises JobError if the manifest `where` lacks what the task needs."""

    def fingerprint(self) -> dict[str, Any]:
        """Returns the parts of the job's fingerprint that only this kind of task has."""

    def chats(
        self, row: Mapping[str, Any], prompt: str | None, system: str | None
    ) -> list[Mapping[str, Any]]:
        """Returns the chat of each question about a row, as `DecodeRequest` takes them.

        row: the values of its manifest columns. prompt, system: the job's.
        Raises RowError.
        """

    def texts(self, row: Mapping[str, Any]) -> Sequence[str]:
        """Returns the texts that may follow the row's prompt. Raises RowError."""
        return ()

    def handler(self, options: HandlerOptions) -> TaskHandler:
        """Returns the handler for a loaded model."""
