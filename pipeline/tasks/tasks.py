"""Finds the implementation of a kind of task."""

from mediamill.pipeline.tasks.embed import EmbedKind
from mediamill.pipeline.tasks.generate_text import TextKind
from mediamill.pipeline.tasks.score import ScoreKind
from mediamill.pipeline.tasks.task import TaskKind
from mediamill.schemas.task import EmbedTask, ScoreTask, Task, TextTask


def task_kind(task: Task) -> TaskKind:
    """Returns the implementation of the task's kind."""
    match task:
        case TextTask():
            return TextKind(task)
        case ScoreTask():
            return ScoreKind(task)
        case EmbedTask():
            return EmbedKind(task)
    raise TypeError(f"found a {type(task).__name__}, expected a task of a known kind")
