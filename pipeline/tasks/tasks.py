"""Turns a task into who asks it."""

from collections.abc import Callable, Sequence

from mediamill.model.sampling import Sampling
from mediamill.pipeline.tasks.embed import Embed
from mediamill.pipeline.tasks.generate_text import GenerateText
from mediamill.pipeline.tasks.score import ScoreTexts
from mediamill.pipeline.tasks.task import TaskHandler
from mediamill.schemas.task import Task


def task_handler(
    task: Task,
    sampling: Sampling,
    decode: Callable[[Sequence[int]], str],
    stop: Sequence[str],
    end_token: int | None,
) -> TaskHandler:
    """Returns the task handler of a job. end_token: the id that ends an answer of the chat."""
    if task.kind == "score":
        return ScoreTexts(task, end_token)
    if task.kind == "embed":
        return Embed(task)
    return GenerateText(task, sampling, decode, stop)
