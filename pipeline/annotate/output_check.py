"""Checks that an annotation's output is its own, and words errors for its user."""

from collections.abc import Iterator
from contextlib import contextmanager

from mediamill.pipeline.annotate.window_columns import STEPS, VIDEOS_FOLDER, WINDOWS_FOLDER
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig

VIDEO_MANIFEST = "_videos"
PLAIN_NOTES = "_merged"  # in a folder of videos without summaries


def check_output(job: JobConfig, output: Place) -> None:
    """Checks that the output is empty, or of an annotation that has summaries if the job has."""
    shown = storage.redact(output.url)
    try:
        names: list[str] = []
        if output.fs.isdir(output.path):
            paths = output.fs.ls(output.path, False)
            names = [str(path).rstrip("/").rpartition("/")[2] for path in paths]
        foreign = [name for name in names if name and name[0] not in "._"]
        foreign = sorted({*foreign} - {WINDOWS_FOLDER, VIDEOS_FOLDER})
        if foreign or ledger.HIDDEN in names:
            found = foreign[0] if foreign else "the result of a job of another kind"
            raise JobError(
                f"{shown}: the output holds '{found}', expected an empty folder, nothing yet, or "
                "what a job annotate has written there"
            )
        plain = storage.exists(output / VIDEOS_FOLDER / PLAIN_NOTES)
    except OSError as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{shown}: the output cannot be read: {reason}") from error
    if job.annotate.videos and VIDEO_MANIFEST in names and job.annotate.summary_prompt is None:
        raise JobError(
            f"{shown}: the output's videos were made with annotate.summary_prompt, and the job has "
            "none: write to a new output folder, or undo the change"
        )
    if plain and job.annotate.summary_prompt is not None:
        raise JobError(
            f"{shown}: the output's videos were made without annotate.summary_prompt, and the job "
            "has one: write to a new output folder, or undo the change"
        )


@contextmanager
def errors_name_output(output: Place) -> Iterator[None]:
    """Makes errors name the user's output instead of a folder in it."""
    try:
        yield
    except JobError as error:
        shown, text = storage.redact(output.url), str(error)
        for name in STEPS:
            text = text.replace(f"{shown}/{name}: the output was", f"{shown}: the output was")
            text = text.replace(f"such as {shown}/{name}-", f"such as {shown}-")
        raise JobError(*text.splitlines()) from error
