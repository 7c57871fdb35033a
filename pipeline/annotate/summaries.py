"""Turns the windows of each video into one prompt, which asks the model about all of them.

A timeline that is longer than the model takes is thinned: as many windows as fit, evenly over the
video, and a note says so. How prompts are answered is not known here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from mediamill.pipeline.annotate.video_table import (
    Row,
    VideoRules,
    common_fields,
    common_values,
    first_failure,
    segment_answers,
)
from mediamill.pipeline.annotate.window_columns import (
    END_S,
    SPLIT_CODE,
    SPLIT_MESSAGE,
    START_S,
    SUMMARY_NOTE,
)
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import MEDIA_TYPE, ManifestSchema
from mediamill.schemas.task import Task

_TEMPLATE_TOKENS = 64  # of a chat around its texts, and a default system message


@dataclass(frozen=True)
class SummaryRules:
    """question: what is asked of a timeline. room: tokens of question, timeline and system message.

    tokens: counts those of a text.
    """

    question: str
    room: int
    tokens: Callable[[str], int]


def prompt_room(context: int, max_new_tokens: int) -> int:
    """Tokens that a prompt may have. Both: tokens."""
    return context - max_new_tokens - _TEMPLATE_TOKENS


def videos_to_ask(manifest: ManifestSchema, task: Task, rules: SummaryRules) -> VideoRules:
    """Rows of a manifest without media, each with a prompt of its own."""
    answers = segment_answers(task)
    schema = pa.schema(
        [
            *common_fields(manifest, answers),
            pa.field(c.MEDIA, MEDIA_TYPE),
            pa.field(c.PROMPT, pa.string()),
            pa.field(SUMMARY_NOTE, pa.string()),
            pa.field(SPLIT_CODE, pa.string()),
            pa.field(SPLIT_MESSAGE, pa.string()),
        ]
    )

    def finish(video: Row, segments: list[Row]) -> Row:
        told = [one for one in segments if one[c.STATUS] == c.STATUS_OK]
        failed = None if told else first_failure(segments)
        prompt, note = prompt_of([_line(one, task) for one in told], rules)
        return {
            **common_values(video, segments, manifest),
            c.MEDIA: [],
            c.PROMPT: prompt,
            SUMMARY_NOTE: note,
            SPLIT_CODE: None if failed is None else failed[c.ERROR_CODE],
            SPLIT_MESSAGE: None if failed is None else failed[c.ERROR_MESSAGE],
        }

    return VideoRules(manifest, answers, schema, finish)


def prompt_of(lines: Sequence[str], rules: SummaryRules) -> tuple[str, str | None]:
    """The question with the lines behind it, and a note if some had to be left out."""
    sizes = [rules.tokens(f"{line}\n") for line in lines]
    room = rules.room - rules.tokens(f"{rules.question}\n\n")
    least, most = 0, len(lines)  # so many fit; more do not
    while least < most:
        count = (least + most + 1) // 2
        if sum(sizes[place] for place in evenly(len(lines), count)) <= room:
            least = count
        else:
            most = count - 1
    kept = [lines[place] for place in evenly(len(lines), least)]
    note = None
    if least < len(lines):
        note = (
            f"{least} of {len(lines)} windows, evenly over the video: more do not fit the model's "
            "context"
        )
    return "\n".join([rules.question, "", *kept]), note


def evenly(total: int, count: int) -> list[int]:
    """`count` of the numbers 0 to total - 1, as far from each other as can be; all are different
    where count <= total.
    """
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def _line(segment: Row, task: Task) -> str:
    texts = []
    for question in task.questions:
        text = " ".join((segment[question.column(c.TEXT)] or "").split())
        texts.append(text if question.name is None else f"{question.name}: {text}")
    # What the model has spelt like a control string is none.
    plain = "; ".join(texts).replace("<|", "< |")
    start, end = segment[START_S], segment[END_S]
    return f"[{start:.1f}-{end:.1f} s] {plain}"
