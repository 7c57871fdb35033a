"""Turns the rows of windows into one row for each video, with all its windows in their order.

A merge takes what has become visible since the one before it: all windows of the videos of some
files of the split. Rows are gathered in buckets on the local disk, so that memory does not grow
with the videos. How windows were answered is not known here.
"""

import hashlib
import json
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.annotate.window_columns import (
    DURATION_S,
    END_S,
    FAILED_WINDOWS,
    SEGMENTS,
    START_S,
    VIDEO_ID,
    WINDOW,
    WINDOWS,
    user_fields,
)
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import Task

_MERGED = "_merged"  # a folder with a note of each merge
_BUCKET_WINDOWS = 50_000  # in memory at once, about
_MOST_BUCKETS = 200  # open files
_BATCH_ROWS = 4096
_ROW_GROUP_VIDEOS = 512

Row = dict[str, Any]


@dataclass(frozen=True)
class VideoRules:
    """manifest: of the videos. answers: columns of a window's row that a segment has too.

    schema: of the merged rows. finish: makes the row of a video of what is known of it: the split's
    row and its segments.
    """

    manifest: ManifestSchema
    answers: Sequence[pa.Field]
    schema: pa.Schema
    finish: Callable[[Row, list[Row]], Row]


def plain_videos(manifest: ManifestSchema, task: Task) -> VideoRules:
    """Rows for readers: all that is known of each video, without another word of the model."""
    answers = segment_answers(task)
    schema = pa.schema(
        [
            *common_fields(manifest, answers),
            pa.field(c.STATUS, pa.string()),
            pa.field(c.ERROR_CODE, pa.string()),
            pa.field(c.ERROR_MESSAGE, pa.string()),
        ]
    )

    def finish(video: Row, segments: list[Row]) -> Row:
        failed = first_failure(segments)
        status = c.STATUS_OK if failed is None else c.STATUS_ERROR
        return {
            **common_values(video, segments, manifest),
            c.STATUS: status,
            c.ERROR_CODE: None if failed is None else failed[c.ERROR_CODE],
            c.ERROR_MESSAGE: None if failed is None else failed[c.ERROR_MESSAGE],
        }

    return VideoRules(manifest, answers, schema, finish)


def segment_answers(task: Task) -> list[pa.Field]:
    """What the model has said of a window: of each question the text, and what was read of it."""
    return [
        field.with_name(question.column(field.name))
        for question in task.questions
        for field in (pa.field(c.TEXT, pa.string()), *question.json_fields)
    ]


def common_fields(manifest: ManifestSchema, answers: Sequence[pa.Field]) -> list[pa.Field]:
    """Columns that every row of a video has."""
    segment = [
        pa.field(WINDOW, pa.int32()),
        pa.field(START_S, pa.float64()),
        pa.field(END_S, pa.float64()),
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


def common_values(video: Row, segments: list[Row], manifest: ManifestSchema) -> Row:
    """Their values."""
    return {
        c.ID: video[c.ID],
        **{field.name: video[field.name] for field in user_fields(manifest)},
        DURATION_S: video[DURATION_S],
        WINDOWS: len(segments),
        FAILED_WINDOWS: sum(one[c.STATUS] != c.STATUS_OK for one in segments),
        SEGMENTS: segments,
    }


def first_failure(segments: Sequence[Row]) -> Row | None:
    """The first window that is an error row."""
    return next((one for one in segments if one[c.STATUS] != c.STATUS_OK), None)


def merge(split: Place, windows: Place, target: Place, rules: VideoRules) -> int:
    """Adds the videos of which `target` knows nothing yet; how many these were.

    split, windows: finished. A merge that is cut off is made anew. Raises RunError when windows of
    a video are missing.
    """
    known = _notes(target)
    new_videos = [name for name in visible_files(split) if name not in known]
    new_windows = [name for name in visible_files(windows) if f"{WINDOWS}/{name}" not in known]
    _discard_unfinished(target, known)
    if not new_videos:
        return 0
    listed = {"videos": new_videos, "windows": new_windows}
    text = json.dumps(listed, ensure_ascii=False).encode()
    digest = hashlib.blake2b(text, digest_size=8).hexdigest()
    rows = sum(_rows(windows / name) for name in new_windows)
    count = min(_MOST_BUCKETS, max(1, -(-rows // _BUCKET_WINDOWS)))
    made = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        buckets = [_Bucket(Path(folder) / str(number), rules) for number in range(count)]
        for bucket in buckets:
            stack.callback(bucket.close)
        for name in new_windows:
            _spread(windows / name, VIDEO_ID, [bucket.windows for bucket in buckets])
        for name in new_videos:
            _spread(split / name, c.ID, [bucket.videos for bucket in buckets])
        for number, bucket in enumerate(buckets):
            path = Path(folder) / "merged.parquet"
            if found := bucket.write(path):
                storage.put_file(target / f"part-{digest}-{number:05}.parquet", path)
                made += found
    storage.put(target / _MERGED / f"{digest}.json", text)
    return made


def _notes(target: Place) -> set[str]:
    """What was merged: names of the split's files; those of windows with a folder before them."""
    known: set[str] = set()
    for name in storage.list_files(target / _MERGED):
        listed = json.loads(storage.read(target / _MERGED / name))
        known |= set(listed["videos"]) | {f"{WINDOWS}/{one}" for one in listed["windows"]}
        known.add(f"{_MERGED}/{name.removesuffix('.json')}")
    return known


def _discard_unfinished(target: Place, known: set[str]) -> None:
    """Removes files of a merge that was cut off: the next one may take other rows together."""
    for name in storage.list_files(target):
        if name.startswith("part-") and f"{_MERGED}/{name.split('-')[1]}" not in known:
            storage.remove(target / name)


def _rows(place: Place) -> int:
    with place.fs.open(place.path, "rb") as file, pq.ParquetFile(file) as parquet:
        return int(parquet.metadata.num_rows)


class _Spill:
    """Rows in a local file."""

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

    def read(self) -> Iterator[Row]:
        """All rows; nothing can be added any more."""
        self.close()
        if self._writer is not None:
            with pa.memory_map(str(self._path)) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    yield from batch.to_pylist()


class _Bucket:
    """Some of the videos, and all of their windows."""

    def __init__(self, path: Path, rules: VideoRules) -> None:
        self._rules = rules
        manifest = rules.manifest
        self.windows = _Spill(
            path.with_suffix(".windows"),
            pa.schema(
                [
                    pa.field(VIDEO_ID, manifest.id_type),
                    pa.field(WINDOW, pa.int32()),
                    pa.field(START_S, pa.float64()),
                    pa.field(END_S, pa.float64()),
                    *rules.answers,
                    pa.field(c.STATUS, pa.string()),
                    pa.field(c.ERROR_CODE, pa.string()),
                    pa.field(c.ERROR_MESSAGE, pa.string()),
                ]
            ),
        )
        self.videos = _Spill(
            path.with_suffix(".videos"),
            pa.schema(
                [
                    pa.field(c.ID, manifest.id_type),
                    *user_fields(manifest),
                    pa.field(DURATION_S, pa.float64()),
                    pa.field(WINDOWS, pa.int32()),
                ]
            ),
        )

    def close(self) -> None:
        self.windows.close()
        self.videos.close()

    def write(self, path: Path) -> int:
        """A Parquet file of the merged rows, in the order of the split; how many. Raises RunError.

        None = no file.
        """
        segments: defaultdict[Any, list[Row]] = defaultdict(list)
        for row in self.windows.read():
            segments[row.pop(VIDEO_ID)].append(row)
        schema, made = self._rules.schema, 0
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for rows in _chunks(self._merged(segments), _ROW_GROUP_VIDEOS):
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
                writer.write_table(pa.Table.from_pylist(rows, schema))
                made += len(rows)
        return made

    def _merged(self, segments: Mapping[Any, list[Row]]) -> Iterator[Row]:
        for video in self.videos.read():
            own = sorted(segments.get(video[c.ID], ()), key=_in_time)
            if len(own) != video[WINDOWS]:
                raise RunError(
                    f"video {video[c.ID]!r}: found the rows of {len(own)} windows, expected "
                    f"{video[WINDOWS]}"
                )
            yield self._rules.finish(video, own)


def _in_time(row: Row) -> tuple[float, int]:
    return (row[START_S] if row[START_S] is not None else 0.0, row[WINDOW])


def _spread(place: Place, key: str, spills: Sequence[_Spill]) -> None:
    """Adds a file's rows to the spills, by their videos."""
    schema = spills[0].schema
    with place.fs.open(place.path, "rb") as file, pq.ParquetFile(file) as parquet:
        there = [name for name in schema.names if name in parquet.schema_arrow.names]
        there += [c.STATUS] if c.STATUS not in there else []
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=there):
            table = _counted(pa.Table.from_batches([batch])).select(schema.names).cast(schema)
            places = [
                zlib.crc32(str(value).encode(errors="surrogatepass")) % len(spills)
                for value in table[key].to_pylist()
            ]
            by_spill: defaultdict[int, list[int]] = defaultdict(list)
            for row, number in enumerate(places):
                by_spill[number].append(row)
            for number, rows in by_spill.items():
                for part in table.take(pa.array(rows, pa.int64())).combine_chunks().to_batches():
                    spills[number].add(part)


def _counted(table: pa.Table) -> pa.Table:
    """With the number of windows in the place of the windows: one for a video that has none."""
    if WINDOWS not in table.column_names:
        return table
    counts = pc.fill_null(pc.list_value_length(table[WINDOWS]), 1)
    number = table.schema.get_field_index(WINDOWS)
    return table.set_column(number, WINDOWS, counts)


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while True:
        some: list[Row] = []
        with suppress(StopIteration):
            while len(some) < size:
                some.append(next(rows))
        if not some:
            return
        yield some
