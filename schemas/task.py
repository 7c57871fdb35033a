"""Turns a job into its Task: what the model is asked of each row, and the columns that this makes.

How it is asked is the pipeline's. A task of one prompt has the plain columns; one of several named
prompts has columns of its own for each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import pyarrow as pa

from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError
from mediamill.schemas.job_models import JobConfig
from mediamill.schemas.job_tasks import EmbedConfig, JsonConfig, ScoreConfig
from mediamill.schemas.json_schema import AnswerSchema

TaskKind = Literal["text", "score", "embed"]

_KINDS: dict[str, TaskKind] = {
    "caption": "text",
    "annotate": "text",
    "score": "score",
    "embed": "embed",
}
_SECTIONS = ("score", "embed", "annotate")

# Of one candidate. Natural logarithms, under the network's own logits.
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
    """One prompt. name: None for the only one of a job, whose columns are the plain ones.

    prompt: None where each row brings its own. schema: of the answer, where that is to be JSON.
    """

    name: str | None = None
    prompt: str | None = None
    schema: AnswerSchema | None = None

    def column(self, plain: str) -> str:
        """The name of this question's column of a kind: colour, colour_finish_reason."""
        if self.name is None:
            return plain
        return self.name if plain == c.TEXT else f"{self.name}_{plain}"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns of this question alone; those of its JSON answer last."""
        plain = [*_TEXT_FIELDS, *(() if self.name is None else _ERROR_FIELDS), *self.json_fields]
        return tuple(one.with_name(self.column(one.name)) for one in plain)

    @property
    def json_fields(self) -> tuple[pa.Field, ...]:
        """The properties of the JSON answer, by their plain names."""
        return () if self.schema is None else self.schema.fields


@dataclass(frozen=True)
class Task:
    """What is asked of each row, in what form the answers are stored.

    dimension: of the vectors of job embed. texts_alike: whether those of texts without media lie in
    the same space. dedupe: whether copies are marked.
    """

    kind: TaskKind = "text"
    questions: tuple[Question, ...] = (Question(),)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    json_answers: JsonConfig = field(default_factory=JsonConfig)
    dimension: int | None = None
    texts_alike: bool = False
    dedupe: bool = False

    @classmethod
    def of(cls, job: JobConfig, dimension: int | None = None) -> Self:
        """Raises JobError for keys that contradict each other or the kind of the job."""
        _check(job)
        return cls(
            _KINDS[job.job],
            _questions(job),
            job.score,
            job.embed,
            job.json_answers,
            dimension,
            dedupe=job.dedupe,
        )

    @property
    def is_named(self) -> bool:
        """Whether each question has columns of its own."""
        return self.questions[0].name is not None

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Columns of the manifest that the answers are made with."""
        column = self.score.column if self.kind == "score" else None
        return () if column is None else (column,)

    @property
    def answer_fields(self) -> tuple[pa.Field, ...]:
        """The columns of the answers, besides ERROR and token counts of the whole row."""
        if self.kind == "embed":
            vector = pa.list_(pa.float32(), self.dimension or -1)
            return (pa.field(c.EMBEDDING, vector), *_plain(c.FINISH_REASON))
        if self.kind == "score":
            return (
                *_plain(c.TEXT, c.FINISH_REASON, c.MEAN_LOGPROB),
                pa.field(c.PROBABILITY, pa.float64()),  # of the first candidate
                pa.field(c.SCORES, pa.list_(SCORE_STRUCT)),
            )
        if self.is_named:
            return tuple(one for question in self.questions for one in question.fields)
        return tuple(one for one in self.questions[0].fields if one.name not in _TOTALS)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Where a reader finds what the model has said."""
        if self.kind == "embed":
            return ()
        return tuple(question.column(c.TEXT) for question in self.questions)

    def check_columns(self, taken: Sequence[str], where: str) -> None:
        """taken: columns that the result has besides the answers'. Raises JobError for one of these
        that an answer would have as well. where: names the manifest.
        """
        mine = [one.name for one in self.answer_fields]
        mine += [c.CONTENT_HASH, c.DUPLICATE_OF] if self.dedupe else []
        twice = [name for name in mine if name in taken or mine.count(name) > 1]
        if twice:
            raise JobError(
                f"{where}: column '{twice[0]}' is also a column that the answers make: rename the "
                "prompt (prompts), the property (json_schema) or the manifest's column"
            )


_TOTALS = (c.PROMPT_TOKENS, c.OUTPUT_TOKENS)  # of a whole row, whatever is asked
CAPTION = Task()


def _plain(*names: str) -> tuple[pa.Field, ...]:
    return tuple(one for one in _TEXT_FIELDS if one.name in names)


def _questions(job: JobConfig) -> tuple[Question, ...]:
    if job.prompts is None:
        return (Question(None, job.prompt, _schema(job.json_schema, "json_schema")),)
    return tuple(
        Question(name, one.prompt, _schema(one.json_schema, f"prompts.{name}.json_schema"))
        for name, one in job.prompts.items()
    )


def _schema(given: Mapping[str, Any] | None, where: str) -> AnswerSchema | None:
    return None if given is None else AnswerSchema.of(given, where)


def _check(job: JobConfig) -> None:
    for section in _SECTIONS:
        mine = getattr(job, section)
        if job.job != section and mine != type(mine)():
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
    if _KINDS[job.job] != "text":
        for key in ("prompts", "json_schema"):
            if getattr(job, key) is not None:
                raise JobError(f"{key}: found it in a job of the kind {job.job}, expected none")
    if job.job == "score" and (job.score.texts is None) == (job.score.column is None):
        found = "neither" if job.score.texts is None else "both"
        raise JobError(f"score: found {found} of texts and column, expected one of them")
