"""Merges the rows of windows into one row for each video, with all its windows in order.

A merge reads the files of the split and of the windows that are new since the previous merge. Rows
are grouped in buckets on the local disk, so that memory does not grow with the number of videos.
"""

import hashlib
import json
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.annotate.window_columns import (
    DURATION_S,
    ERROR_FIELDS,
    FAILED_WINDOWS,
    SEGMENTS,
    START_S,
    VIDEO_ID,
    WINDOW,
    WINDOW_FIELDS,
    WINDOWS,
    user_fields,
)
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import (
    convert_column,
    convert_table,
    flight_type,
    parquet_options,
)
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import Task

_MERGED = "_merged"  # a folder with a note for each merge
_BUCKET_WINDOWS = 50_000  # about as many as one bucket has: they are in memory together
_MAX_BUCKETS = 200  # each has open files
_BATCH_ROWS = 4096
_ROW_GROUP_VIDEOS = 512

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


def merge(split: Place, windows: Place, target: Place, table: VideoTable) -> int:
    """Adds the videos that `target` does not have yet, and returns their number.

    split, windows: outputs of finished runs. An interrupted merge is repeated by the next call.
    Raises RunError if windows of a video are missing.
    """
    merged = _merged_files(target)
    new_videos = [name for name in visible_files(split) if name not in merged]
    new_windows = [name for name in visible_files(windows) if f"{WINDOWS}/{name}" not in merged]
    _remove_unfinished(target, merged)
    if not new_videos:
        return 0
    note = {"videos": new_videos, "windows": new_windows}
    text = json.dumps(note, ensure_ascii=False).encode()
    digest = hashlib.blake2b(text, digest_size=8).hexdigest()
    rows = sum(_count_rows(windows / name) for name in new_windows)
    count = min(_MAX_BUCKETS, max(1, -(-rows // _BUCKET_WINDOWS)))
    videos = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        buckets = [_Bucket(Path(folder) / str(number), table) for number in range(count)]
        for bucket in buckets:
            stack.callback(bucket.close)
        for name in new_windows:
            _spread(windows / name, VIDEO_ID, [bucket.windows for bucket in buckets])
        for name in new_videos:
            _spread(split / name, c.ID, [bucket.videos for bucket in buckets])
        for number, bucket in enumerate(buckets):
            path = Path(folder) / "merged.parquet"
            if bucket_videos := bucket.write(path):
                storage.put_file(target / f"part-{digest}-{number:05}.parquet", path)
                videos += bucket_videos
    storage.put(target / _MERGED / f"{digest}.json", text)
    return videos


def _merged_files(target: Place) -> set[str]:
    """Returns what was merged: NAME for files of the split, windows/NAME, and _merged/DIGEST."""
    merged: set[str] = set()
    for name in storage.list_files(target / _MERGED):
        note = json.loads(storage.read(target / _MERGED / name))
        merged |= set(note["videos"]) | {f"{WINDOWS}/{file}" for file in note["windows"]}
        merged.add(f"{_MERGED}/{name.removesuffix('.json')}")
    return merged


def _remove_unfinished(target: Place, merged: set[str]) -> None:
    """Removes files of an interrupted merge: the next one may group the rows differently."""
    for name in storage.list_files(target):
        if name.startswith("part-") and f"{_MERGED}/{name.split('-')[1]}" not in merged:
            storage.remove(target / name)


def _count_rows(place: Place) -> int:
    with place.fs.open(place.path, "rb") as file, pq.ParquetFile(file) as parquet:
        return int(parquet.metadata.num_rows)


class _Spill:
    """A temporary local file of rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self.schema = path, schema
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self._path), self.schema)
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def read(self) -> Iterator[pa.Table]:
        """Yields all rows, in tables. Rows cannot be added any more."""
        self.close()
        if self._writer is not None:
            with pa.memory_map(str(self._path)) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    yield pa.Table.from_batches([batch])


class _Bucket:
    """Some of the videos, and all of their windows."""

    def __init__(self, path: Path, table: VideoTable) -> None:
        self._table = table
        manifest = table.manifest
        video_id = pa.field(VIDEO_ID, manifest.id_type)
        window_schema = pa.schema([video_id, *WINDOW_FIELDS, *table.answers, *ERROR_FIELDS])
        self.windows = _Spill(path.with_suffix(".windows"), window_schema)
        video_schema = pa.schema(
            [
                pa.field(c.ID, manifest.id_type),
                *(f.with_type(flight_type(f.type)) for f in user_fields(manifest)),
                pa.field(DURATION_S, pa.float64()),
                pa.field(WINDOWS, pa.int32()),
            ]
        )
        self.videos = _Spill(path.with_suffix(".videos"), video_schema)

    def close(self) -> None:
        self.windows.close()
        self.videos.close()

    def write(self, path: Path) -> int:
        """Writes a Parquet file of the merged rows in the order of the split.

        Returns how many there are; without rows there is no file. Raises RunError as `merge`.
        """
        segments: defaultdict[Any, list[RowValues]] = defaultdict(list)
        for table in self.windows.read():
            for row in table.to_pylist():
                segments[row.pop(VIDEO_ID)].append(row)
        schema, videos = self._table.schema, 0
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for table in self.videos.read():
                for start in range(0, len(table), _ROW_GROUP_VIDEOS):
                    chunk = table.slice(start, _ROW_GROUP_VIDEOS)
                    if writer is None:
                        writer = stack.enter_context(
                            pq.ParquetWriter(
                                path, schema, compression="zstd", **parquet_options(schema)
                            )
                        )
                    writer.write_table(self._rows(chunk, segments))
                    videos += len(chunk)
        return videos

    def _rows(self, videos: pa.Table, segments: Mapping[Any, list[RowValues]]) -> pa.Table:
        """Returns the rows of these videos: new values, and the user's columns as they are."""
        schema, user = self._table.schema, user_fields(self._table.manifest)
        copied = {field.name for field in user}
        read = [name for name in videos.schema.names if name not in copied]
        rows = self._merged(videos.select(read).to_pylist(), segments)
        made = pa.schema([field for field in schema if field.name not in copied])
        table = pa.Table.from_pylist(list(rows), made)
        for field in user:
            column = convert_column(videos[field.name], field.type)
            table = table.append_column(field, column)
        return table.select(schema.names)

    def _merged(
        self, videos: Sequence[RowValues], segments: Mapping[Any, list[RowValues]]
    ) -> Iterator[RowValues]:
        for video in videos:
            ordered = sorted(segments.get(video[c.ID], ()), key=_start)
            if len(ordered) != video[WINDOWS]:
                raise RunError(
                    f"video {video[c.ID]!r}: found the rows of {len(ordered)} windows, expected "
                    f"{video[WINDOWS]}"
                )
            yield self._table.make_row(video, ordered)


def _start(row: RowValues) -> tuple[float, int]:
    return (row[START_S] if row[START_S] is not None else 0.0, row[WINDOW])


def _spread(place: Place, key: str, spills: Sequence[_Spill]) -> None:
    """Adds the rows of a file to the spills; all rows of a video get into one spill."""
    schema = spills[0].schema
    with place.fs.open(place.path, "rb") as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=schema.names):
            table = convert_table(_with_counts(pa.Table.from_batches([batch])), schema)
            by_spill: defaultdict[int, list[int]] = defaultdict(list)
            for row, value in enumerate(table[key].to_pylist()):
                digest = zlib.crc32(str(value).encode(errors="surrogatepass"))
                by_spill[digest % len(spills)].append(row)
            for number, rows in by_spill.items():
                for part in table.take(pa.array(rows, pa.int64())).combine_chunks().to_batches():
                    spills[number].add(part)


def _with_counts(table: pa.Table) -> pa.Table:
    """Replaces the list of windows by their number; 1 for a video that could not be split."""
    if WINDOWS not in table.column_names:
        return table
    counts = pc.fill_null(pc.list_value_length(table[WINDOWS]), 1)
    number = table.schema.get_field_index(WINDOWS)
    return table.set_column(number, WINDOWS, counts)
