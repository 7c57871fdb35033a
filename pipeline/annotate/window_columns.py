"""Defines the columns of an annotation's tables, and the names of its folders."""

from collections.abc import Sequence

import pyarrow as pa

from mediamill.pipeline.storage.storage import redact
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_types import is_list, is_seconds
from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import MEDIA_TYPE, ManifestSchema

# Folders of an annotation that are outputs of runs.
SPLIT_FOLDER, WINDOWS_FOLDER, VIDEOS_FOLDER = STEPS = ("_split", "windows", "videos")

# Columns of a window's row.
VIDEO_ID = "video_id"
WINDOW = "window"
START_S = "start_s"
END_S = "end_s"
# Only in the manifest of windows: the error of the window's video.
SPLIT_CODE = c.SPLIT_CODE
SPLIT_MESSAGE = "split_error_message"
# Columns of a video's row.
DURATION_S = "duration_s"
WINDOWS = "windows"
SEGMENTS = "segments"
FAILED_WINDOWS = "failed_windows"
SUMMARY_NOTE = "summary_note"

WINDOWS_TYPE = pa.list_(pa.struct([pa.field(START_S, pa.float64()), pa.field(END_S, pa.float64())]))
SPLIT_FIELDS = (pa.field(DURATION_S, pa.float64()), pa.field(WINDOWS, WINDOWS_TYPE))
SPLIT_ERROR_FIELDS = (pa.field(SPLIT_CODE, pa.string()), pa.field(SPLIT_MESSAGE, pa.string()))
WINDOW_FIELDS = (
    pa.field(WINDOW, pa.int32()),  # from 0 in each video
    pa.field(START_S, pa.float64()),
    pa.field(END_S, pa.float64()),
)
ERROR_FIELDS = tuple(
    pa.field(name, pa.string()) for name in (c.STATUS, c.ERROR_CODE, c.ERROR_MESSAGE)
)
_RESERVED = (
    *(VIDEO_ID, WINDOW, SPLIT_CODE, SPLIT_MESSAGE),
    *(DURATION_S, WINDOWS, SEGMENTS, FAILED_WINDOWS, SUMMARY_NOTE),
)


def check_columns(manifest: ManifestSchema, given: bool, url: str) -> None:
    """Checks that no column of the manifest is also a column of windows or videos.

    given: whether the columns start_s and end_s name the windows; both are needed then, as numbers
    or lists of numbers. Raises JobError.
    """
    user = {field.name: field.type for field in manifest.user}
    for name in (*_RESERVED, *(() if given else (START_S, END_S))):
        if name in user:
            raise JobError(
                f"{redact(url)}: column '{name}' is also a column of the windows or videos that "
                f"the job makes: rename it in the manifest, for example to 'source_{name}'"
            )
    for name in (START_S, END_S) if given else ():
        if name not in user:
            raise JobError(
                f"{redact(url)}: found no column '{name}', expected start_s and end_s (double, or "
                "list<double>) with annotate.windows=given"
            )
        column_type = user[name]
        if not is_seconds(column_type.value_type if is_list(column_type) else column_type):
            raise JobError(
                f"{redact(url)}: column '{name}' has type {column_type}, expected double or "
                "list<double>"
            )


def user_fields(manifest: ManifestSchema) -> Sequence[pa.Field]:
    """Returns the user's columns that windows and videos have too."""
    return [field for field in manifest.user if field.name not in (START_S, END_S)]


def window_schema(manifest: ManifestSchema) -> pa.Schema:
    """Returns the schema of the manifest of windows."""
    return pa.schema(
        [
            pa.field(c.ID, pa.string()),
            pa.field(c.MEDIA, MEDIA_TYPE),
            *(pa.field(name, pa.string()) for name in manifest.optional),
            *user_fields(manifest),
            pa.field(VIDEO_ID, manifest.id_type),
            *WINDOW_FIELDS,
            *SPLIT_ERROR_FIELDS,
        ]
    )


def without_split_error(schema: pa.Schema) -> pa.Schema:
    """Removes the columns of the video's error: a result has it in the row's error columns."""
    return pa.schema([field for field in schema if field not in SPLIT_ERROR_FIELDS])


def split_schema(manifest: ManifestSchema) -> pa.Schema:
    """Returns the schema of the result of a split, with one row for each video."""
    read_columns = [field for field in manifest.fields if field.name in c.MANIFEST_COLUMNS]
    run_id = pa.field(c.RUN_ID, pa.string())
    return pa.schema([*read_columns, *manifest.user, *SPLIT_FIELDS, *ERROR_FIELDS, run_id])
