"""Merges the rows of windows into one row for each video, with all its windows in order.

A merge reads the files of the split and of the windows that are new since the previous merge, and
repeats earlier merges of files in which a retry has replaced rows. Rows are grouped in buckets on
the local disk, so that memory does not grow with the number of videos.
"""

import hashlib
import json
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.annotate.video_table import RowValues, VideoTable
from mediamill.pipeline.annotate.window_columns import (
    DURATION_S,
    ERROR_FIELDS,
    START_S,
    VIDEO_ID,
    WINDOW,
    WINDOW_FIELDS,
    WINDOWS,
    user_fields,
)
from mediamill.pipeline.annotate.window_manifest import replaced
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
    take_rows,
)

_READERS = 16
_MERGED = "_merged"  # a folder with a note for each merge
_BUCKET_WINDOWS = 50_000  # about as many as one bucket has: they are in memory together
_MAX_BUCKETS = 200  # each has open files
_BATCH_ROWS = 4096
_ROW_GROUP_VIDEOS = 512


def merge(split: Place, windows: Place, target: Place, table: VideoTable) -> int:
    """Adds the videos that `target` does not have yet, and returns their number.

    split, windows: outputs of finished runs. An interrupted merge is repeated by the next call.
    Raises RunError if windows of a video are missing.
    """
    merged = _merged_files(target)
    new_videos = [name for name in visible_files(split) if name not in merged]
    new_windows = [name for name in visible_files(windows) if f"{WINDOWS}/{name}" not in merged]
    _remove_unfinished(target, merged)
    labels = _labels(split, windows)
    for digest, note in _outdated(target, labels):
        count = note.get("buckets") or _bucket_count(windows, note["windows"])
        places = [split / name for name in note["videos"]], _all_windows(windows)
        _write(places, target, digest, count, table)
        note |= {"buckets": count, "replaced": _of_note(note, labels)}
        storage.put(target / _MERGED / f"{digest}.json", _text(note))
    if not new_videos:
        return 0
    note = {"videos": new_videos, "windows": new_windows}
    digest = hashlib.blake2b(_text(note), digest_size=8).hexdigest()
    count = _bucket_count(windows, new_windows)
    places = [split / name for name in new_videos], [windows / name for name in new_windows]
    videos = _write(places, target, digest, count, table)
    note |= {"buckets": count, "replaced": _of_note(note, labels)}
    storage.put(target / _MERGED / f"{digest}.json", _text(note))
    return videos


def _text(note: Mapping[str, object]) -> bytes:
    return json.dumps(note, ensure_ascii=False).encode()


def _bucket_count(windows: Place, names: Sequence[str]) -> int:
    rows = sum(_count_rows(windows / name) for name in names)
    return min(_MAX_BUCKETS, max(1, -(-rows // _BUCKET_WINDOWS)))


def _all_windows(windows: Place) -> list[Place]:
    """A video that was split again has windows in later files too."""
    return [windows / name for name in visible_files(windows)]


def _write(
    places: tuple[Sequence[Place], Sequence[Place]],
    target: Place,
    digest: str,
    count: int,
    table: VideoTable,
) -> int:
    """Merges the videos and windows of these files. Returns the number of videos."""
    videos = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        buckets = [_Bucket(Path(folder) / str(number), table) for number in range(count)]
        for bucket in buckets:
            stack.callback(bucket.close)
        for place in places[1]:
            _spread(place, VIDEO_ID, [bucket.windows for bucket in buckets])
        for place in places[0]:
            _spread(place, c.ID, [bucket.videos for bucket in buckets])
        for number, bucket in enumerate(buckets):
            path = Path(folder) / "merged.parquet"
            if bucket_videos := bucket.write(path):
                storage.put_file(target / f"part-{digest}-{number:05}.parquet", path)
                videos += bucket_videos
    return videos


def _labels(split: Place, windows: Place) -> dict[str, str]:
    """Returns what retries have replaced, by file: NAME, or windows/NAME."""
    places = {name: split / name for name in visible_files(split)}
    places |= {f"{WINDOWS}/{name}": windows / name for name in visible_files(windows)}
    with ThreadPoolExecutor(_READERS) as threads:
        labels = dict(zip(places, threads.map(replaced, places.values()), strict=True))
    return {name: label.decode() for name, label in labels.items() if label is not None}


def _of_note(note: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    names = [*note["videos"], *(f"{WINDOWS}/{name}" for name in note["windows"])]
    return {name: labels[name] for name in names if name in labels}


def _outdated(target: Place, labels: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the merges whose windows or videos a retry has replaced, each with its note."""
    notes = []
    for name in storage.list_files(target / _MERGED) if labels else ():
        note = json.loads(storage.read(target / _MERGED / name))
        if note.get("replaced", {}) != _of_note(note, labels):
            notes.append((name.removesuffix(".json"), note))
    return notes


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
        segments: dict[Any, list[RowValues]] = {
            row_id: [] for table in self.videos.read() for row_id in table[c.ID].to_pylist()
        }
        for table in self.windows.read():
            for row in table.to_pylist():
                if (rows := segments.get(row.pop(VIDEO_ID))) is not None:
                    rows.append(row)
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
                taken = take_rows(table, np.array(rows, np.int64)).combine_chunks()
                for part in taken.to_batches():
                    spills[number].add(part)


def _with_counts(table: pa.Table) -> pa.Table:
    """Replaces the list of windows by their number; 1 for a video that could not be split."""
    if WINDOWS not in table.column_names:
        return table
    counts = pc.fill_null(pc.list_value_length(table[WINDOWS]), 1)
    number = table.schema.get_field_index(WINDOWS)
    return table.set_column(number, WINDOWS, counts)
