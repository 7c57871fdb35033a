"""What a table of videos looks like: its schema, and the values of a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mediamill.pipeline.annotate.window_columns import (
    DURATION_S,
    ERROR_FIELDS,
    FAILED_WINDOWS,
    SEGMENTS,
    WINDOW_FIELDS,
    WINDOWS,
    user_fields,
)
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import Task

RowValues = dict[str, Any]  # by column


@dataclass(frozen=True)
class VideoTable:
    """What a table of videos looks like.

    manifest: the schema of the manifest of videos.
    answers: the columns of a window's row that a segment has too.
    make_row: makes the values of a video from those of its split and its segments, except those of
        the user's columns, which are copied.
    """

    manifest: ManifestSchema
    answers: Sequence[pa.Field]
    schema: pa.Schema
    make_row: Callable[[RowValues, list[RowValues]], RowValues]


def plain_table(manifest: ManifestSchema, task: Task) -> VideoTable:
    """Returns the table of videos with their segments and status, without summaries."""
    answers = segment_answers(task)
    schema = pa.schema([*common_fields(manifest, answers), *ERROR_FIELDS])

    def make_row(video: RowValues, segments: list[RowValues]) -> RowValues:
        failed = first_error_row(segments)
        return {
            **common_values(video, segments),
            c.STATUS: c.STATUS_ERROR if failed else c.STATUS_OK,
            c.ERROR_CODE: failed.get(c.ERROR_CODE),
            c.ERROR_MESSAGE: failed.get(c.ERROR_MESSAGE),
        }

    return VideoTable(manifest, answers, schema, make_row)


def segment_answers(task: Task) -> list[pa.Field]:
    """Returns the columns of a window's answers: the text of each question, and its JSON values."""
    return [
        field.with_name(question.column(field.name))
        for question in task.questions
        for field in (pa.field(c.TEXT, pa.string()), *question.json_fields)
    ]


def common_fields(manifest: ManifestSchema, answers: Sequence[pa.Field]) -> list[pa.Field]:
    """Returns the columns that all tables of videos have."""
    segment = [
        *WINDOW_FIELDS,
        *answers,
        pa.field(c.STATUS, pa.string()),
        pa.field(c.ERROR_CODE, pa.string()),
    ]
    return [
        pa.field(c.ID, manifest.id_type),
        *user_fields(manifest),
        pa.field(DURATION_S, pa.float64()),
        pa.field(WINDOWS, pa.int32()),
        pa.field(FAILED_WINDOWS, pa.int32()),
        pa.field(SEGMENTS, pa.list_(pa.struct(segment))),
    ]


def common_values(video: RowValues, segments: list[RowValues]) -> RowValues:
    """Returns the values of `common_fields`, without those of the user's columns."""
    return {
        c.ID: video[c.ID],
        DURATION_S: video[DURATION_S],
        WINDOWS: len(segments),
        FAILED_WINDOWS: sum(segment[c.STATUS] != c.STATUS_OK for segment in segments),
        SEGMENTS: segments,
    }


def first_error_row(segments: Sequence[RowValues]) -> RowValues:
    """Returns the first window that is an error row, or an empty row if all are ok."""
    return next((segment for segment in segments if segment[c.STATUS] != c.STATUS_OK), {})
