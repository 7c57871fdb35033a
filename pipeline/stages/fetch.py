"""The fetch stage: reads the media that the rows of a table name, or turns rows into error rows.

A few threads fetch media ahead of the prepare stage, as far as the byte budget allows. A URI that
several rows name is fetched once.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.content import FetchedMedium
from mediamill.pipeline.fetching.fetcher import Fetcher, FetchRules, fetch
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.records import (
    MEDIA_BYTES,
    MEDIA_PATHS,
    RowFailure,
    failure_columns,
    failures,
    fetched_schema,
    media_uris,
    replace_columns,
)
from mediamill.schemas.errors import RowError
from mediamill.schemas.manifest import ManifestSchema

__all__ = ["Fetch", "FetchRules", "fetch"]

_BYTES = pa.large_binary()


class Fetch:
    """The stage. Adds the columns MEDIA_BYTES and MEDIA_PATHS; rows whose media cannot be fetched
    become error rows. Several threads may call it.
    """

    def __init__(self, manifest: ManifestSchema, rules: FetchRules) -> None:
        self._manifest = manifest
        self._fetcher = Fetcher(rules)
        self._threads = ThreadPoolExecutor(rules.config.at_once, thread_name_prefix="fetch")

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `read_schema` -> one of `fetched_schema`, with all its media at once."""
        return pa.concat_tables(_TableFetch(self, table).parts(release=False))

    def parts(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yields the same in one or more tables of consecutive rows.

        A part is yielded as soon as fetches of other rows wait for the bytes that it holds. Its
        bytes count, and its temporary files exist, until the next part is requested; the caller
        must drop it before.
        """
        return _TableFetch(self, table).parts(release=True)


@dataclass(frozen=True)
class _InTable:
    """Stands for the URI of a medium whose bytes are in the table. row, index: where."""

    row: int
    index: int
    uri: str | None = field(compare=False)


_Medium = str | None | _InTable


@dataclass
class _UriFetch:
    """The fetch of one URI of a table. uses: how often rows name it that have not received it."""

    uses: int
    medium: "Future[FetchedMedium | RowFailure]"


class _TableFetch:
    """The fetches of one table."""

    def __init__(self, stage: Fetch, table: pa.Table) -> None:
        self._manifest, self._fetcher = stage._manifest, stage._fetcher
        self._threads = stage._threads
        self._table = table
        self._failures = failures(table)
        uris = media_uris(table, self._manifest)
        self._in_table = _views(table[MEDIA_BYTES]) if stage._manifest.media_column else None
        self._uris: list[Sequence[_Medium]] = [
            self._media(row, uris[row]) if failure is None else []
            for row, failure in enumerate(self._failures)
        ]
        self._urgent_row = -1  # the caller waits for rows up to this one
        self._fetches: dict[_Medium, _UriFetch] = {}

    def _media(self, row: int, uris: Sequence[str | None]) -> Sequence[_Medium]:
        """What a row's media are fetched by: their URIs, or where they are in the table."""
        data = None if self._in_table is None else self._in_table[row]
        if data is None:
            return uris
        return [
            uri if uri and data[index] is None else _InTable(row, index, uri)
            for index, uri in enumerate(uris)
        ]

    def parts(self, release: bool) -> Iterator[pa.Table]:
        """See `Fetch.parts`. release: remove a part's temporary files before the next part."""
        if not self._uris:
            yield self._part(0, 0, [])
            return
        self._submit()
        files: list[FetchedMedium] = []
        try:
            start = 0
            while start < len(self._uris):
                stop = self._wait(start)
                yield self._part(start, stop, files)
                if release:
                    Spool.release(medium.path for medium in files)
                files.clear()
                start = stop
        finally:
            self._discard()
            if release:
                Spool.release(medium.path for medium in files)

    def _submit(self) -> None:
        for row, uris in enumerate(self._uris):
            for uri in uris:
                if uri in self._fetches:
                    self._fetches[uri].uses += 1
                else:
                    medium = self._threads.submit(self._fetch, uri, row)
                    medium.add_done_callback(self._notify)
                    self._fetches[uri] = _UriFetch(1, medium)

    def _fetch(self, uri: _Medium, row: int) -> FetchedMedium | RowFailure:
        """row: the first one that names the URI."""
        reservation = Reservation(self._fetcher.budget, lambda: self._urgent_row >= row)
        try:
            if isinstance(uri, _InTable):
                data = self._in_table and self._in_table[uri.row]
                content = data[uri.index] if data else None
                return self._fetcher.take(content or memoryview(b""), uri.uri, reservation)
            return self._fetcher.fetch(uri, reservation)
        except RowError as error:
            # Returned, since a traceback would keep other media of the row in memory.
            return RowFailure.of(error)

    def _notify(self, _: object) -> None:
        with self._fetcher.budget.changed:
            self._fetcher.budget.changed.notify_all()

    def _wait(self, start: int) -> int:
        """Waits for the next part, and returns the row after its last one.

        The part ends with the table, or before a row that is not fetched while others wait for
        bytes.
        """
        budget = self._fetcher.budget
        stop = start
        with budget.changed:
            self._urgent_row = start
            budget.changed.notify_all()
            budget.changed.wait_for(lambda: self._is_done(start))
            while stop < len(self._uris):
                if self._is_done(stop):
                    stop += 1
                elif budget.starved:
                    break
                else:
                    budget.changed.wait()
        return stop

    def _is_done(self, row: int) -> bool:
        return all(self._fetches[uri].medium.done() for uri in self._uris[row])

    def _part(self, start: int, stop: int, files: list[FetchedMedium]) -> pa.Table:
        """A table of these rows. Appends the media that are in temporary files to `files`."""
        data: list[pa.Array] = []
        paths: list[list[str | None] | None] = []
        for row in range(start, stop):
            media = self._take_media(row)
            data.append(_binary_list(media))
            paths.append(None if media is None else [_path(medium) for medium in media])
            files += [medium for medium in media or [] if medium.path is not None]
        schema = fetched_schema(self._manifest)
        columns: dict[str, Any] = {
            # A chunk for each row: one array for all of them would be a copy of all.
            MEDIA_BYTES: pa.chunked_array(data, schema.field(MEDIA_BYTES).type),
            MEDIA_PATHS: paths,
            **failure_columns(self._failures[start:stop]),
        }
        return replace_columns(self._table.slice(start, stop - start), columns, schema)

    def _take_media(self, row: int) -> list[FetchedMedium] | None:
        """Returns a row's media, which belong to the caller; None if one of them failed."""
        media: list[FetchedMedium] = []
        failure = None
        for uri in self._uris[row]:
            uri_fetch = self._fetches[uri]
            uri_fetch.uses -= 1
            medium = uri_fetch.medium.result()
            if isinstance(medium, RowFailure):
                failure = failure or medium
            else:
                media.append(medium if not uri_fetch.uses else _share(medium))
            if not uri_fetch.uses:
                del self._fetches[uri]
        if failure is None:
            return media
        self._failures[row] = failure
        Spool.release(medium.path for medium in media)
        return None

    def _discard(self) -> None:
        """Cancels the fetches, or releases the media, that no row has received."""
        for uri_fetch in self._fetches.values():
            if not uri_fetch.medium.cancel():
                uri_fetch.medium.add_done_callback(_release)
        self._fetches.clear()
        self._urgent_row = len(self._uris)  # running fetches must not wait for bytes any more
        self._notify(None)


def _views(column: pa.ChunkedArray) -> list[list[memoryview | None] | None]:
    """The bytes of each row's media, without the copy that a scalar would make."""
    rows: list[list[memoryview | None] | None] = []
    for chunk in column.chunks:
        values, ends = chunk.values, chunk.offsets.to_pylist()
        valid = values.is_valid().to_pylist()
        _, offsets, data = values.buffers()
        starts = np.frombuffer(offsets, np.int64, len(values) + 1, 8 * values.offset).tolist()
        memory = memoryview(b"" if data is None else data)
        views = [
            memory[a:b] if ok else None for ok, (a, b) in zip(valid, pairwise(starts), strict=True)
        ]
        present = zip(chunk.is_valid().to_pylist(), pairwise(ends), strict=True)
        rows += [views[start:stop] if ok else None for ok, (start, stop) in present]
    return rows


def _share(medium: FetchedMedium) -> FetchedMedium:
    """The same medium for one more row, with a path of its own to the same file."""
    return medium if medium.path is None else replace(medium, path=Spool.share(medium.path))


def _path(medium: FetchedMedium) -> str | None:
    return None if medium.path is None else str(medium.path)


def _release(future: "Future[FetchedMedium | RowFailure]") -> None:
    if not future.cancelled() and future.exception() is None:
        medium = future.result()
        Spool.release([medium.path] if isinstance(medium, FetchedMedium) else [])


def _binary_list(media: list[FetchedMedium] | None) -> pa.Array:
    """One value of the column MEDIA_BYTES; a single medium is not copied."""
    if media is None:
        return pa.nulls(1, pa.list_(_BYTES))
    # Built from buffers, since pa.array() never frees the memory of a memoryview.
    data = [medium.data for medium in media if medium.data is not None]
    sizes = [0 if medium.data is None else medium.size for medium in media]
    offsets = pa.array([0, *accumulate(sizes)], pa.int64())
    valid = pa.array([medium.data is not None for medium in media], pa.bool_())
    values = data[0] if len(data) == 1 else np.concatenate([np.empty(0, np.uint8), *data])
    buffers = [valid.buffers()[1], offsets.buffers()[1], pa.py_buffer(values)]
    binaries = pa.Array.from_buffers(_BYTES, len(media), buffers)
    return pa.ListArray.from_arrays(pa.array([0, len(media)], pa.int32()), binaries)
