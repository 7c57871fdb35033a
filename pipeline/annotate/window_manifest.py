"""Makes the manifest of windows from the rows of a split: one row for each window of each video.

Each file of the split gives one file, which is written atomically: the ledger of the windows
identifies rows by their position in it. It is made again when a retry has replaced videos in the
file of the split; the ledger then finds its rows by their ids.
"""

import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.annotate.split import the_video
from mediamill.pipeline.annotate.window_columns import (
    DURATION_S,
    END_S,
    SPLIT_CODE,
    SPLIT_MESSAGE,
    START_S,
    VIDEO_ID,
    WINDOW,
    WINDOWS,
    user_fields,
    window_schema,
)
from mediamill.pipeline.ledger.publish import REPLACED, visible_files
from mediamill.pipeline.row_values import row_values
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import convert_table, flight_type, parquet_options
from mediamill.schemas.errors import RowError
from mediamill.schemas.manifest import ManifestSchema

_READERS = 16
_ROWS = 4096  # of one row group: a read task takes whole ones
_BATCH_VIDEOS = 64  # that are read at once
_MIN_DIGITS = 5  # of a window's number in its id
_VIDEO = "video"


def make_windows(split: Place, windows: Place, manifest: ManifestSchema) -> int:
    """Makes the files of the manifest of windows that are missing or out of date.

    split: the output of a finished run. Memory does not grow with the windows of a file.
    Returns the number of files that were made.
    """
    existing = set(storage.list_files(windows))

    def is_current(name: str) -> bool:
        return name in existing and replaced(split / name) == replaced(windows / name)

    names = visible_files(split)
    with ThreadPoolExecutor(_READERS) as threads:
        current = list(threads.map(is_current, names))
    outdated = [name for name, is_new in zip(names, current, strict=True) if not is_new]
    for name in outdated:
        _make_file(split / name, windows / name, manifest)
    return len(outdated)


def replaced(place: Place) -> bytes | None:
    """Returns which videos a retry has replaced in a file of the split, as its footer says it."""
    with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
        value: bytes | None = (parquet.metadata.metadata or {}).get(REPLACED)
        return value


def _make_file(source: Place, target: Place, manifest: ManifestSchema) -> None:
    schema = window_schema(manifest)
    with (
        tempfile.NamedTemporaryFile(suffix=".parquet") as file,
        source.fs.open(source.path, "rb") as opened,
        pq.ParquetFile(opened) as videos,
    ):
        options = parquet_options(schema)
        with pq.ParquetWriter(file, schema, compression="zstd", **options) as writer:
            pieces: list[pa.Table] = []
            count = 0
            for piece in _pieces(videos, manifest):
                if pieces and count + len(piece) > _ROWS:
                    writer.write_table(convert_table(pa.concat_tables(pieces), schema))
                    pieces, count = [], 0
                pieces.append(piece)
                count += len(piece)
            if pieces:
                writer.write_table(convert_table(pa.concat_tables(pieces), schema))
            if (noted := (videos.metadata.metadata or {}).get(REPLACED)) is not None:
                writer.add_key_value_metadata({REPLACED: noted})
        file.flush()
        storage.put_file(target, Path(file.name))


def _pieces(videos: pq.ParquetFile, manifest: ManifestSchema) -> Iterator[pa.Table]:
    """Yields the rows of windows in order, each table of one video, at most _ROWS at once.

    Columns that nobody reads are copied without a look at their values.
    """
    copied = [*manifest.optional, *(field.name for field in user_fields(manifest))]
    schema = window_schema(manifest)
    made = pa.schema([field for field in schema if field.name not in copied])
    flight = pa.schema([field.with_type(flight_type(field.type)) for field in schema])
    for batch in videos.iter_batches(_BATCH_VIDEOS):
        table = pa.Table.from_batches([batch])
        columns = convert_table(
            table, pa.schema([field for field in flight if field.name in copied])
        )
        for index in range(batch.num_rows):  # one at a time: each may have many windows
            rows = windows_of(_video(table, index, manifest), manifest)
            while chunk := list(islice(rows, _ROWS)):
                piece = pa.Table.from_pylist(chunk, made)
                copies = columns.take(pa.array([index] * len(chunk), pa.int64()))
                for field in copies.schema:
                    piece = piece.append_column(field, copies[field.name])
                yield piece


def _video(table: pa.Table, index: int, manifest: ManifestSchema) -> dict[str, Any]:
    """Returns the values that `windows_of` reads; media that cannot be read are null."""
    names = (c.ID, c.STATUS, c.ERROR_CODE, c.ERROR_MESSAGE, WINDOWS, DURATION_S)
    video = row_values(table, index, names)
    try:
        return video | row_values(table, index, [manifest.form])
    except RowError:  # the row has this error already
        return video | {manifest.form: None}


def windows_of(video: Mapping[str, Any], manifest: ManifestSchema) -> Iterator[dict[str, Any]]:
    """Yields what the rows of a video's windows have of their own, in order; one row for a video
    that could not be split.

    video: values of a row of the split.
    """
    common = {VIDEO_ID: video[c.ID]}
    media = _media(video, manifest)
    if video[c.STATUS] != c.STATUS_OK:
        yield {
            **common,
            c.ID: window_id(video[c.ID], 0),
            c.MEDIA: media,
            WINDOW: 0,
            SPLIT_CODE: video[c.ERROR_CODE],
            SPLIT_MESSAGE: video[c.ERROR_MESSAGE],
        }
        return
    index = the_video(media)
    for number, window in enumerate(video[WINDOWS]):
        medium = dict(media[index])
        medium |= {c.MEDIA_START_S: window[START_S], c.MEDIA_END_S: window[END_S]}
        if window[END_S] == _end(video, media[index][c.MEDIA_END_S]):
            # Up to the last frame, even if the header's duration is too short.
            medium[c.MEDIA_END_S] = None
        yield {
            **common,
            c.ID: window_id(video[c.ID], number),
            c.MEDIA: [*media[:index], medium, *media[index + 1 :]],
            WINDOW: number,
            START_S: window[START_S],
            END_S: window[END_S],
        }


def _end(video: Mapping[str, Any], row_end: float | None) -> float | None:
    """Returns the measured end of a video; None if it was not measured, or the row ends before."""
    duration: float | None = video[DURATION_S]
    ends_before = duration is not None and row_end is not None and row_end < duration
    return None if ends_before else duration


def window_id(video_id: str | int, number: int) -> str:
    """Returns the id of a window, such as "clip-7#00012". It is unique, as a number has no #."""
    return f"{video_id}#{number:0{_MIN_DIGITS}}"


def _media(video: Mapping[str, Any], manifest: ManifestSchema) -> list[dict[str, Any]]:
    """Returns the row's media, with the type of the video set: pictures are not split."""
    if manifest.form == c.URI:
        plain = {c.MEDIA_URI: video[c.URI], c.MEDIA_START_S: None, c.MEDIA_END_S: None}
        return [{c.MEDIA_TYPE: _VIDEO, **plain}]
    media = [dict(medium) for medium in video[c.MEDIA] or [] if medium is not None]
    with suppress(RowError):  # the row has this error already
        media[the_video(media)][c.MEDIA_TYPE] = _VIDEO
    return media
