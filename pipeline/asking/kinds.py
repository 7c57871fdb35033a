"""Turns a task into who asks it."""

from collections.abc import Callable, Sequence

from model.sampling import Sampling
from pipeline.asking.said import Asking
from pipeline.asking.scores import Scores
from pipeline.asking.texts import Texts
from pipeline.asking.vectors import Vectors
from schemas.task import Task


def asking(
    task: Task,
    sampling: Sampling,
    decode: Callable[[Sequence[int]], str],
    stop: Sequence[str],
    end_token: int | None,
) -> Asking:
    """See `Texts`. end_token: the id of the token that ends an answer of the chat template."""
    if task.kind == "score":
        return Scores(task, end_token)
    if task.kind == "embed":
        return Vectors(task)
    return Texts(task, sampling, decode, stop)
