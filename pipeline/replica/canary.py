"""The canary: a request with a known answer, by which a replica checks itself.

It takes the same path through the replica as the requests of rows, at the start and then from time
to time, and makes no row.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mediamill.pipeline.faults import CanaryError
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig

if TYPE_CHECKING:
    from mediamill.model.inputs import VisualInput
    from mediamill.model.processor import Processor
    from mediamill.model.requests import Request
    from mediamill.model.sampling import Sampling

_EVERY_ROWS = 1000


def check_canary(job: JobConfig) -> None:
    """Raises JobError when the job has a canary that cannot be used."""
    canary = job.canary
    if canary.uri is None:
        return
    if canary.prompt is None and job.prompt is None:
        raise JobError(
            "canary.prompt: found no prompt there and none in the job, expected one of them"
        )
    _content(canary.uri, Path.cwd())


class Canary:
    """The canary of one replica. Raises JobError when it cannot be prepared.

    base: the folder that a relative path is relative to.
    sampling: the job's.
    answer: returns the text of the engine's answer to a request.
    every_rows: rows between two checks.
    """

    def __init__(
        self,
        job: JobConfig,
        checkpoint: Path,
        base: Path,
        sampling: "Sampling",
        answer: "Callable[[Request], str]",
        every_rows: int = _EVERY_ROWS,
    ) -> None:
        from mediamill.model.processor import Processor, VideoRules
        from mediamill.model.requests import Request

        canary = job.canary
        if canary.uri is None or canary.text is None:
            raise JobError("canary: found no uri or no text, expected both")
        self._uri, self._expected = storage.redact(canary.uri), canary.text
        processor = Processor.load(
            checkpoint,
            job.image.min_pixels,
            job.image.max_pixels,
            VideoRules(**job.video.model_dump(exclude={"mrope"})),
        )
        ids, visual = canary_prompt(job, processor, base)
        self._answer = answer
        self._request = Request("canary", ids, (visual,), sampling)
        self._every_rows, self._rows, self._checks = every_rows, 0, 0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Runs the request now. Raises CanaryError when the answer is not the expected one."""
        with self._lock:
            self._checks += 1
            request = replace(self._request, id=f"canary/{self._checks}")
        answer = self._answer(request)
        if answer != self._expected:
            raise CanaryError(
                f"canary {self._uri}: found the answer {answer!r}, expected "
                f"{self._expected!r} (canary.text): no answer of this model and machine can be "
                "trusted; compare checkpoint, prompt and versions with those that made the text"
            )

    def count(self, rows: int) -> None:
        """Counts rows, and checks again when enough have passed. Raises CanaryError."""
        with self._lock:
            self._rows += rows
            due = self._rows >= self._every_rows
            if due:
                self._rows = 0
        if due:
            self.check()


def canary_prompt(
    job: JobConfig, processor: "Processor", base: Path
) -> "tuple[list[int], VisualInput]":
    """Returns the token ids and the medium of the job's canary.

    base: the folder that a relative path is relative to.
    Raises JobError when the medium or the prompt cannot be prepared.
    """
    from mediamill.model.errors import MediaError, PromptError

    canary = job.canary
    uri = canary.uri or ""
    content = _content(uri, base)
    try:
        visual, _ = processor.prepare_media(content)
        prompt = canary.prompt or job.prompt or ""
        messages = processor.user_message(prompt, [visual.kind], job.system)
        return processor.build_prompt(messages, [visual]), visual
    except (MediaError, PromptError) as error:
        raise JobError(
            f"canary: {storage.redact(uri)} cannot be asked about: {error}; expected a picture or "
            "a video, and a prompt, that the model can answer"
        ) from error


def _content(uri: str, base: Path) -> bytes:
    try:
        if storage.scheme(uri) == "file":
            return (base / storage.local_path(uri)).read_bytes()
        return storage.read(storage.resolve(uri))
    except Exception as error:
        raise JobError(
            f"canary.uri: {storage.redact(uri)} cannot be read "
            f"({storage.redact_text(str(error))}): expected a picture or a video"
        ) from error
