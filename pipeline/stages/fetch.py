"""Turns the URIs of a table's rows into the bytes of their media, or into row errors.

The media of a table are fetched by a few threads, ahead of who decodes them, as far as the budget
of bytes goes; what several rows name is fetched once. How a URI is read is in fetcher.py; what the
bytes are is not known.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
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
    replace_columns,
)
from mediamill.schemas import columns as c
from mediamill.schemas.errors import RowError
from mediamill.schemas.manifest import ManifestSchema

__all__ = ["Fetch", "FetchRules", "fetch"]

_BYTES = pa.large_binary()


class Fetch:
    """The stage. Adds the columns MEDIA_BYTES and MEDIA_PATHS; rows whose media cannot be had
    become error rows. Several threads may call it.
    """

    def __init__(self, manifest: ManifestSchema, rules: FetchRules) -> None:
        self._manifest = manifest
        self._fetcher = Fetcher(rules)
        self._threads = ThreadPoolExecutor(rules.config.at_once, thread_name_prefix="fetch")

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `read_schema` -> one of `fetched_schema`, with all its media at once."""
        found = list(_Work(self, table).parts(release=False))
        return pa.concat_tables(found) if found else self._empty(table)

    def parts(self, table: pa.Table) -> Iterator[pa.Table]:
        """The same in one or more tables of consecutive rows, each as soon as others wait for the
        bytes that it holds.

        Whoever takes them lets go of each before asking for the next: its bytes are counted until
        then, and its temporary files are removed.
        """
        if table.num_rows == 0:
            yield self._empty(table)
            return
        yield from _Work(self, table).parts(release=True)

    def _empty(self, table: pa.Table) -> pa.Table:
        columns: dict[str, list[Any]] = {MEDIA_BYTES: [], MEDIA_PATHS: []}
        return replace_columns(table, columns, fetched_schema(self._manifest))


@dataclass
class _Shared:
    """A URI of a table. first: the first row that names it. uses: rows that have not got it yet."""

    first: int
    uses: int
    medium: "Future[FetchedMedium | RowFailure]"


class _Work:
    """One table on its way."""

    def __init__(self, stage: Fetch, table: pa.Table) -> None:
        self._manifest, self._fetcher = stage._manifest, stage._fetcher
        self._threads = stage._threads
        self._table = table
        self._failures = failures(table)
        self._rows = [
            uris if failure is None else []
            for uris, failure in zip(_uris(table, self._manifest), self._failures, strict=True)
        ]
        self._next = -1  # the row that is waited for while nothing can be handed on
        self._shared: dict[str | None, _Shared] = {}

    def parts(self, release: bool) -> Iterator[pa.Table]:
        """Consecutive rows. release: temporary files of a part, when the next one is asked for."""
        self._begin()
        files: list[FetchedMedium] = []
        try:
            start = 0
            while start < len(self._rows):
                stop = self._wait(start)
                yield self._part(start, stop, files)
                if release:
                    Spool.release(one.path for one in files)
                files.clear()
                start = stop
        finally:
            self._end()
            if release:
                Spool.release(one.path for one in files)

    def _begin(self) -> None:
        for number, row in enumerate(self._rows):
            for uri in row:
                if uri in self._shared:
                    self._shared[uri].uses += 1
                else:
                    medium = self._threads.submit(self._fetch, uri, number)
                    medium.add_done_callback(self._tell)
                    self._shared[uri] = _Shared(number, 1, medium)

    def _fetch(self, uri: str | None, row: int) -> FetchedMedium | RowFailure:
        room = Reservation(self._fetcher.budget, lambda: self._next >= row)
        try:
            return self._fetcher.fetch(uri, room)
        except RowError as error:
            # Not as an exception: its traceback would hold on to other media of the row.
            return RowFailure(error.code.value, error.message)

    def _tell(self, _: object) -> None:
        with self._fetcher.budget.changed:
            self._fetcher.budget.changed.notify_all()

    def _wait(self, start: int) -> int:
        """How far the next part goes: to the end, or until others wait for what it holds."""
        budget = self._fetcher.budget
        stop = start
        with budget.changed:
            self._next = start
            budget.changed.notify_all()
            budget.changed.wait_for(lambda: self._is_done(start))
            while stop < len(self._rows):
                if self._is_done(stop):
                    stop += 1
                elif budget.starved:
                    break
                else:
                    budget.changed.wait()
        return stop

    def _is_done(self, row: int) -> bool:
        return all(self._shared[uri].medium.done() for uri in self._rows[row])

    def _part(self, start: int, stop: int, files: list[FetchedMedium]) -> pa.Table:
        """A table of these rows; `files` takes what is not in memory."""
        data: list[pa.Array] = []
        names: list[list[str | None] | None] = []
        for number in range(start, stop):
            media = self._media(number)
            data.append(_binary_lists(media))
            names.append(None if media is None else [_path(one) for one in media])
            files += [one for one in media or [] if one.path is not None]
        part = self._table.slice(start, stop - start)
        columns: dict[str, list[Any]] = {
            MEDIA_BYTES: [None] * (stop - start),
            MEDIA_PATHS: names,
            **failure_columns(self._failures[start:stop]),
        }
        schema = fetched_schema(self._manifest)
        table = replace_columns(part, columns, schema)
        # A chunk for each row: one array for all of them would be a copy of all.
        chunks = pa.chunked_array(data, schema.field(MEDIA_BYTES).type)
        return table.set_column(schema.get_field_index(MEDIA_BYTES), MEDIA_BYTES, chunks)

    def _media(self, row: int) -> list[FetchedMedium] | None:
        """A row's media, which are the caller's from now on; None when one of them failed."""
        found: list[FetchedMedium] = []
        failure = None
        for uri in self._rows[row]:
            shared = self._shared[uri]
            shared.uses -= 1
            medium = shared.medium.result()
            if isinstance(medium, RowFailure):
                failure = failure or medium
            else:
                found.append(medium if not shared.uses else _again(medium))
            if not shared.uses:
                del self._shared[uri]
        if failure is None:
            return found
        self._failures[row] = failure
        Spool.release(one.path for one in found)
        return None

    def _end(self) -> None:
        """Lets go of what nobody has taken."""
        for shared in self._shared.values():
            if not shared.medium.cancel():
                shared.medium.add_done_callback(_drop)
        self._shared.clear()
        self._next = len(self._rows)  # what still runs must not wait for room
        self._tell(None)


def _uris(table: pa.Table, manifest: ManifestSchema) -> list[list[str | None]]:
    if manifest.form == c.URI:
        return [[uri] for uri in table[c.URI].to_pylist()]
    return [
        [None if one is None else one[c.MEDIA_URI] for one in row or []]
        for row in table[c.MEDIA].to_pylist()
    ]


def _again(medium: FetchedMedium) -> FetchedMedium:
    """The same content for one more row: a file has a name for each, which is removed apart."""
    return medium if medium.path is None else replace(medium, path=Spool.share(medium.path))


def _path(medium: FetchedMedium) -> str | None:
    return None if medium.path is None else str(medium.path)


def _drop(medium: "Future[FetchedMedium | RowFailure]") -> None:
    if not medium.cancelled() and medium.exception() is None:
        found = medium.result()
        Spool.release([found.path] if isinstance(found, FetchedMedium) else [])


def _binary_lists(media: list[FetchedMedium] | None) -> pa.Array:
    """One value of the column MEDIA_BYTES; a single medium is not copied."""
    if media is None:
        return pa.nulls(1, pa.list_(_BYTES))
    # By its buffers: pa.array() never lets go of the memory of a memoryview.
    data = [one.data for one in media if one.data is not None]
    sizes = [0 if one.data is None else one.size for one in media]
    offsets = pa.array([0, *accumulate(sizes)], pa.int64())
    there = pa.array([one.data is not None for one in media], pa.bool_())
    values = data[0] if len(data) == 1 else np.concatenate([np.empty(0, np.uint8), *data])
    buffers = [there.buffers()[1], offsets.buffers()[1], pa.py_buffer(values)]
    one = pa.Array.from_buffers(_BYTES, len(media), buffers)
    return pa.ListArray.from_arrays(pa.array([0, len(media)], pa.int32()), one)
