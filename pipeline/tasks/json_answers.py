"""Turns a question whose answer is to be JSON into how it is asked, and asked again.

An answer that does not fit its schema is asked for anew with another seed; one that was not drawn
is drawn then, or it would come out the same. Whether an answer fits is the schema's to say.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mediamill.model.generation.grammar import schema_problem
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.tasks.row_seed import row_seed
from mediamill.schemas.errors import ErrorCode, JobError
from mediamill.schemas.job_tasks import JsonConfig
from mediamill.schemas.task import Question, Task

if TYPE_CHECKING:  # schemas are checked before a job starts, where torch is not needed
    from mediamill.model.requests import Completion
    from mediamill.model.sampling import Sampling


def check_schemas(task: Task) -> None:
    """Raises JobError for a schema that answers cannot be held to, where they are to be."""
    for question in task.questions:
        if question.schema is None or not task.json_answers.constrained:
            continue
        if problem := schema_problem(question.schema.text):
            key = "" if question.name is None else f"prompts.{question.name}."
            raise JobError(
                f"{key}json_schema: answers cannot be held to it: {problem}: take that out of the "
                "schema, or set json_answers.constrained=false, which checks answers afterwards"
            )


def schema_parts(task: Task) -> dict[str, Any]:
    """What the fingerprint holds of schemas: their text, because answers follow their order."""
    texts = [one.schema.text for one in task.questions if one.schema is not None]
    return {"schemas": texts} if texts else {}


def sampling_of(
    question: Question, sampling: "Sampling", config: JsonConfig, own: str, attempt: int
) -> "Sampling":
    """How a question of a row is answered. own: names both. attempt: 1 for the first."""
    seed = row_seed(sampling.seed, own if attempt == 1 else f"{own}#{attempt}")
    sampling = replace(sampling, seed=seed)
    if question.schema is None:
        return sampling
    if config.constrained:
        sampling = replace(sampling, json_schema=question.schema.text)
    if attempt == 1:
        return sampling
    # Published files name a top_k of 1, with which another seed gives the same answer.
    return replace(
        sampling,
        temperature=sampling.temperature or config.retry_temperature,
        top_k=sampling.top_k or 0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
    )


def values_of(
    question: Question, text: str, completion: "Completion"
) -> tuple[Mapping[str, Any], RowFailure | None]:
    """The values of the properties, by their names, or what is wrong with the answer."""
    if question.schema is None:
        return {}, None
    values, problem = question.schema.parse(text)
    if problem is None:
        return values, None
    if completion.finish_reason == "length":
        problem = (
            f"the answer was cut off after {len(completion.output_ids)} tokens: raise "
            f"generation.max_new_tokens, or bound the schema's texts and lists; {problem}"
        )
    return {}, RowFailure(ErrorCode.JSON_INVALID.value, f"json_schema: {problem}")
