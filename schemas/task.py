"""Defines what a job asks the model about each row, and the result columns of the answers.

Each kind of task has a class here with its keys and columns; how it is asked is in
pipeline/tasks/<kind>.py. A task of one prompt has the plain columns; a task of several named
prompts has separate columns for each.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError
from mediamill.schemas.job_config import JobConfig
from mediamill.schemas.job_tasks import EmbedConfig, JsonConfig, ScoreConfig
from mediamill.schemas.json_schema import AnswerSchema

# The score of one text. Logarithms are natural, of the probabilities under the model's logits.
SCORE_STRUCT = pa.struct(
    [
        pa.field("text", pa.string()),
        pa.field("logprob", pa.float64()),  # of the whole text: the sum over its tokens
        pa.field("mean_logprob", pa.float64()),
        pa.field("tokens", pa.int32()),
        pa.field("token_logprobs", pa.list_(pa.float32())),
        pa.field("rank", pa.int32()),  # 1 for the likeliest, by score.rank_by
        pa.field("probability", pa.float64()),  # among the row's candidates: softmax of `logprob`
    ]
)
_TEXT_FIELDS = (
    pa.field(c.TEXT, pa.string()),  # null in an error row
    pa.field(c.FINISH_REASON, pa.string()),  # stop | length | error
    pa.field(c.PROMPT_TOKENS, pa.int32()),  # visual tokens included
    pa.field(c.OUTPUT_TOKENS, pa.int32()),  # the end token included
    pa.field(c.MEAN_LOGPROB, pa.float64()),  # natural log, mean over the output tokens
)
_ERROR_FIELDS = (pa.field(c.ERROR_CODE, pa.string()), pa.field(c.ERROR_MESSAGE, pa.string()))


@dataclass(frozen=True)
class Question:
    """One prompt of a job.

    name: None if the job has only this prompt, whose columns are then the plain ones.
    prompt: None if each row has its own.
    schema: the JSON schema of the answer; None for free text.
    """

    name: str | None = None
    prompt: str | None = None
    schema: AnswerSchema | None = None

    def column(self, plain: str) -> str:
        """Returns this question's name of a plain column: colour, colour_finish_reason."""
        if self.name is None:
            return plain
        return self.name if plain == c.TEXT else f"{self.name}_{plain}"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns of this question alone; those of its JSON answer come last."""
        plain = [*_TEXT_FIELDS, *(() if self.name is None else _ERROR_FIELDS), *self.json_fields]
        return tuple(column.with_name(self.column(column.name)) for column in plain)

    @property
    def json_fields(self) -> tuple[pa.Field, ...]:
        """The properties of the JSON answer, by their plain names."""
        return () if self.schema is None else self.schema.fields


@dataclass(frozen=True)
class Task(ABC):
    """What the model is asked about each row. dedupe: whether copies are answered once and marked.

    Every kind of task is a subclass, which holds the job's section of the kind.
    """

    questions: tuple[Question, ...] = (Question(),)
    dedupe: bool = False

    @classmethod
    @abstractmethod
    def of(cls, job: JobConfig, dimension: int | None) -> Self:
        """Returns the task of a job of this kind. Raises JobError. Called by `task_of`."""

    @property
    @abstractmethod
    def answer_fields(self) -> tuple[pa.Field, ...]:
        """The columns of the answers, without the row's error columns and token counts."""

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Columns of the manifest that the answers depend on."""
        return ()

    @property
    def is_named(self) -> bool:
        """Whether each question has separate columns."""
        return self.questions[0].name is not None

    def check_columns(self, taken: Sequence[str], where: str) -> None:
        """Checks the names of the answers' columns.

        taken: the other columns of the result. where: names the manifest in the message.
        Raises JobError for an answer column that is also in `taken`, or that occurs twice.
        """
        names = [column.name for column in self.answer_fields]
        names += [c.CONTENT_HASH, c.DUPLICATE_OF] if self.dedupe else []
        clashes = [name for name in names if name in taken or names.count(name) > 1]
        if clashes:
            raise JobError(
                f"{where}: column '{clashes[0]}' is also a column that the answers make: rename "
                "the prompt (prompts), the property (json_schema) or the manifest's column"
            )


@dataclass(frozen=True)
class TextTask(Task):
    """Jobs caption and annotate: generates text, or JSON by a schema."""

    json_answers: JsonConfig = field(default_factory=JsonConfig)

    @classmethod
    def of(cls, job: JobConfig, dimension: int | None) -> Self:
        return cls(_questions(job), job.dedupe, job.json_answers)

    @property
    def answer_fields(self) -> tuple[pa.Field, ...]:
        if self.is_named:
            return tuple(column for question in self.questions for column in question.fields)
        return tuple(column for column in self.questions[0].fields if column.name not in _TOTALS)


@dataclass(frozen=True)
class ScoreTask(Task):
    """Job score: computes the likelihood of given texts."""

    score: ScoreConfig = field(default_factory=ScoreConfig)

    @classmethod
    def of(cls, job: JobConfig, dimension: int | None) -> Self:
        _check_one_question(job)
        if (job.score.texts is None) == (job.score.column is None):
            found = "neither" if job.score.texts is None else "both"
            raise JobError(f"score: found {found} of texts and column, expected one of them")
        return cls(_questions(job), job.dedupe, job.score)

    @property
    def answer_fields(self) -> tuple[pa.Field, ...]:
        return (
            *_plain(c.TEXT, c.FINISH_REASON, c.MEAN_LOGPROB),
            pa.field(c.PROBABILITY, pa.float64()),  # of the first text
            pa.field(c.SCORES, pa.list_(SCORE_STRUCT)),
        )

    @property
    def input_columns(self) -> tuple[str, ...]:
        return () if self.score.column is None else (self.score.column,)


@dataclass(frozen=True)
class EmbedTask(Task):
    """Job embed: computes a vector for each row.

    dimension: of the vectors; None for vectors of any length.
    texts_alike: whether the vectors of texts without media lie in the same space as those of media.
    """

    embed: EmbedConfig = field(default_factory=EmbedConfig)
    dimension: int | None = None
    texts_alike: bool = False

    @classmethod
    def of(cls, job: JobConfig, dimension: int | None) -> Self:
        _check_one_question(job)
        return cls(_questions(job), job.dedupe, job.embed, dimension)

    @property
    def answer_fields(self) -> tuple[pa.Field, ...]:
        vector = pa.list_(pa.float32(), self.dimension or -1)
        return (pa.field(c.EMBEDDING, vector), *_plain(c.FINISH_REASON))


_TOTALS = (c.PROMPT_TOKENS, c.OUTPUT_TOKENS)  # columns of the whole row, whatever the task
CAPTION = TextTask()

# By the kind of the job (its key `job`).
_TASKS: Mapping[str, type[Task]] = {
    "score": ScoreTask,
    "embed": EmbedTask,
    "annotate": TextTask,
    "caption": TextTask,
}


def task_of(job: JobConfig, dimension: int | None = None) -> Task:
    """Returns the job's task. dimension: of the hidden states of its model.

    Raises JobError for keys that contradict each other or the kind of the job.
    """
    for section in _TASKS:
        config = getattr(job, section, None)  # a caption has no section
        if job.job != section and config is not None and config != type(config)():
            raise JobError(
                f"{section}: found values in a job of the kind {job.job}, expected none, or "
                f"job: {section}"
            )
    if job.prompts is not None and job.prompt is not None:
        raise JobError("prompts: found it beside prompt, expected one of them")
    if job.prompts is not None and job.json_schema is not None:
        raise JobError(
            "json_schema: found it beside prompts, expected it there: "
            "prompts: {name: {prompt: text, json_schema: ...}}"
        )
    return _TASKS[job.job].of(job, dimension)


def _check_one_question(job: JobConfig) -> None:
    for key in ("prompts", "json_schema"):
        if getattr(job, key) is not None:
            raise JobError(f"{key}: found it in a job of the kind {job.job}, expected none")


def _plain(*names: str) -> tuple[pa.Field, ...]:
    return tuple(column for column in _TEXT_FIELDS if column.name in names)


def _questions(job: JobConfig) -> tuple[Question, ...]:
    if job.prompts is None:
        return (Question(None, job.prompt, _schema(job.json_schema, "json_schema")),)
    return tuple(
        Question(name, prompt.prompt, _schema(prompt.json_schema, f"prompts.{name}.json_schema"))
        for name, prompt in job.prompts.items()
    )


def _schema(schema: Mapping[str, Any] | None, where: str) -> AnswerSchema | None:
    return None if schema is None else AnswerSchema.of(schema, where)
