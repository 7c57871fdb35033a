"""JSON answers: checks schemas, chooses the sampling of each try, and parses the answers.

An answer that does not fit its schema is generated again with another seed; the new try of a greedy
answer is sampled, since it would be the same otherwise.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mediamill.model.generation.grammar import schema_problem
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.tasks.row_seed import row_seed
from mediamill.schemas.errors import ErrorCode, JobError
from mediamill.schemas.job_tasks import JsonConfig
from mediamill.schemas.task import Question, TextTask

if TYPE_CHECKING:  # the driver does without torch
    from mediamill.model.requests import Completion
    from mediamill.model.sampling import Sampling


def check_schemas(task: TextTask) -> None:
    """Raises JobError for a schema that is to constrain answers and cannot."""
    for question in task.questions:
        if question.schema is None or not task.json_answers.constrained:
            continue
        if problem := schema_problem(question.schema.text):
            key = "" if question.name is None else f"prompts.{question.name}."
            raise JobError(
                f"{key}json_schema: answers cannot be held to it: {problem}: take that out of the "
                "schema, or set json_answers.constrained=false, which checks answers afterwards"
            )


def question_sampling(
    question: Question, sampling: "Sampling", config: JsonConfig, name: str, attempt: int
) -> "Sampling":
    """Returns the sampling of one question about one row.

    sampling: the job's. name: of the row and the question. attempt: counts from 1.
    """
    seed = row_seed(sampling.seed, name if attempt == 1 else f"{name}#{attempt}")
    sampling = replace(sampling, seed=seed)
    if question.schema is None:
        return sampling
    if config.constrained:
        sampling = replace(sampling, json_schema=question.schema.text)
    if attempt == 1:
        return sampling
    return sampled(sampling, sampling.temperature or config.retry_temperature)


def sampled(sampling: "Sampling", temperature: float) -> "Sampling":
    """Returns a sampling with another temperature, by which each seed gives another answer."""
    # Published checkpoints set top_k to 1, so that every seed would give the same answer.
    return replace(
        sampling,
        temperature=temperature,
        top_k=sampling.top_k or 0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
    )


def parse_answer(
    question: Question, text: str, completion: "Completion"
) -> tuple[Mapping[str, Any], RowFailure | None]:
    """Returns the values of the answer's properties by name, or the answer's failure."""
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
