"""Makes a prompt for each video that asks the model about the texts of all its windows.

If the timeline is too long for the model's context, the prompt has as many windows as fit, evenly
spread over the video, and a note says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from mediamill.pipeline.annotate.video_table import (
    RowValues,
    VideoTable,
    common_fields,
    common_values,
    first_error_row,
    segment_answers,
)
from mediamill.pipeline.annotate.window_columns import (
    END_S,
    SPLIT_CODE,
    SPLIT_ERROR_FIELDS,
    SPLIT_MESSAGE,
    START_S,
    SUMMARY_NOTE,
)
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import MEDIA_TYPE, ManifestSchema
from mediamill.schemas.task import Task

_TEMPLATE_TOKENS = 64  # of the chat template, with its default system message


@dataclass(frozen=True)
class SummaryRules:
    """The question about a timeline, and the maximum tokens of both together."""

    question: str
    max_tokens: int
    count_tokens: Callable[[str], int]


def max_prompt_tokens(context_length: int, max_new_tokens: int) -> int:
    """Returns how many tokens the texts of a prompt may have."""
    return context_length - max_new_tokens - _TEMPLATE_TOKENS


def prompt_table(manifest: ManifestSchema, task: Task, rules: SummaryRules) -> VideoTable:
    """Returns a table of videos that is a manifest: rows without media, each with its prompt."""
    answers = segment_answers(task)
    schema = pa.schema(
        [
            *common_fields(manifest, answers),
            pa.field(c.MEDIA, MEDIA_TYPE),
            pa.field(c.PROMPT, pa.string()),
            pa.field(SUMMARY_NOTE, pa.string()),
            *SPLIT_ERROR_FIELDS,
        ]
    )

    def make_row(video: RowValues, segments: list[RowValues]) -> RowValues:
        answered = [segment for segment in segments if segment[c.STATUS] == c.STATUS_OK]
        failed = {} if answered else first_error_row(segments)
        lines = [_line(segment, task) for segment in answered]
        prompt, note = summary_prompt(lines, rules)
        return {
            **common_values(video, segments),
            c.MEDIA: [],
            c.PROMPT: prompt,
            SUMMARY_NOTE: note,
            SPLIT_CODE: failed.get(c.ERROR_CODE),
            SPLIT_MESSAGE: failed.get(c.ERROR_MESSAGE),
        }

    return VideoTable(manifest, answers, schema, make_row)


def summary_prompt(lines: Sequence[str], rules: SummaryRules) -> tuple[str, str | None]:
    """Returns the question with the lines after it, and a note if lines were left out."""
    sizes = [rules.count_tokens(f"{line}\n") for line in lines]
    max_tokens = rules.max_tokens - rules.count_tokens(f"{rules.question}\n\n")
    low, high = 0, len(lines)  # `low` lines fit; more than `high` do not
    while low < high:
        count = (low + high + 1) // 2
        if sum(sizes[index] for index in evenly(len(lines), count)) <= max_tokens:
            low = count
        else:
            high = count - 1
    chosen = [lines[index] for index in evenly(len(lines), low)]
    prompt = "\n".join([rules.question, "", *chosen])
    if low == len(lines):
        return prompt, None
    left_out = "evenly over the video: more do not fit the model's context"
    return prompt, f"{low} of {len(lines)} windows, {left_out}"


def evenly(total: int, count: int) -> list[int]:
    """Returns `count` of the numbers 0 to total - 1, evenly spaced.

    All are different if count <= total.
    """
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def _line(segment: RowValues, task: Task) -> str:
    texts = []
    for question in task.questions:
        text = " ".join((segment[question.column(c.TEXT)] or "").split())
        texts.append(text if question.name is None else f"{question.name}: {text}")
    # Text that the model has spelled like a control string must not become one.
    plain = "; ".join(texts).replace("<|", "< |")
    start, end = segment[START_S], segment[END_S]
    return f"[{start:.1f}-{end:.1f} s] {plain}"
