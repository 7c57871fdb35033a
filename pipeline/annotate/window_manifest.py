"""Turns the rows of a split into a manifest of windows: one row for each window of each video.

One file is made of each file of the split, whole or not at all, and never changed: the ledger of
the windows knows its rows by their place. What a window shows, and what becomes of it, is not
known.
"""

import tempfile
from collections.abc import Iterator, Mapping
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
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.errors import RowError
from mediamill.schemas.manifest import ManifestSchema

_ROWS = 4096  # of one row group: a read task takes whole ones
_VIDEOS = 64  # that are read at once
_DIGITS = 5  # of a window's number in its id, at least
_VIDEO = "video"


def make_windows(split: Place, windows: Place, manifest: ManifestSchema) -> int:
    """Makes what is missing of the manifest of windows; how many files that were.

    split: a finished one. Memory does not grow with the windows of a file.
    """
    there = set(storage.list_files(windows))
    made = 0
    for name in visible_files(split):
        if name not in there:
            _make(split / name, windows / name, manifest)
            made += 1
    return made


def _make(source: Place, target: Place, manifest: ManifestSchema) -> None:
    schema = window_schema(manifest)
    with (
        tempfile.NamedTemporaryFile(suffix=".parquet") as file,
        source.fs.open(source.path, "rb") as opened,
        pq.ParquetFile(opened) as videos,
    ):
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            rows = _rows(videos, manifest)
            while some := list(islice(rows, _ROWS)):
                writer.write_table(pa.Table.from_pylist(some, schema))
        file.flush()
        storage.put_file(target, Path(file.name))


def _rows(videos: pq.ParquetFile, manifest: ManifestSchema) -> Iterator[dict[str, Any]]:
    for batch in videos.iter_batches(_VIDEOS):
        for place in range(batch.num_rows):  # one after the other: each may have many windows
            (video,) = batch.slice(place, 1).to_pylist()
            yield from windows_of(video, manifest)


def windows_of(video: Mapping[str, Any], manifest: ManifestSchema) -> Iterator[dict[str, Any]]:
    """The rows of one video's windows, in their order; one row for a video that has none.

    video: a row of the split.
    """
    common = {name: video[name] for name in manifest.optional}
    common |= {field.name: video[field.name] for field in user_fields(manifest)}
    common[VIDEO_ID] = video[c.ID]
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
    number_of_video = the_video(media)
    for number, window in enumerate(video[WINDOWS]):
        own = dict(media[number_of_video])
        own |= {c.MEDIA_START_S: window[START_S], c.MEDIA_END_S: window[END_S]}
        if window[END_S] == _end(video, media[number_of_video][c.MEDIA_END_S]):
            # To the last frame, whatever the header thought of its end.
            own[c.MEDIA_END_S] = None
        yield {
            **common,
            c.ID: window_id(video[c.ID], number),
            c.MEDIA: [*media[:number_of_video], own, *media[number_of_video + 1 :]],
            WINDOW: number,
            START_S: window[START_S],
            END_S: window[END_S],
        }


def _end(video: Mapping[str, Any], own_end: float | None) -> float | None:
    """Where a video ends as far as anyone has looked; None where the row itself says it."""
    duration: float | None = video[DURATION_S]
    if duration is None or (own_end is not None and own_end < duration):
        return None
    return duration


def window_id(video_id: str | int, number: int) -> str:
    """For example "clip-7#00012"; no two windows have one, as a number holds no #."""
    return f"{video_id}#{number:0{_DIGITS}}"


def _media(video: Mapping[str, Any], manifest: ManifestSchema) -> list[dict[str, Any]]:
    """The media of the row, where the video is called one: pictures are not split."""
    if manifest.form == c.URI:
        plain = {c.MEDIA_URI: video[c.URI], c.MEDIA_START_S: None, c.MEDIA_END_S: None}
        return [{c.MEDIA_TYPE: _VIDEO, **plain}]
    media = [dict(one) for one in video[c.MEDIA] or []]
    with suppress(RowError):  # which the row says already
        media[the_video(media)][c.MEDIA_TYPE] = _VIDEO
    return media
