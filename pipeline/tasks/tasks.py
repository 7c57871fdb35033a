"""Turns a task into who asks it."""

from collections.abc import Callable, Sequence

from mediamill.model.sampling import Sampling
from mediamill.pipeline.tasks.embed import Vectors
from mediamill.pipeline.tasks.generate_text import Texts
from mediamill.pipeline.tasks.score import Scores
from mediamill.pipeline.tasks.task import Asking
from mediamill.schemas.task import Task


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
