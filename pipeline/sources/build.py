"""Makes a Parquet manifest of a source: reads its units in parallel, writes their rows in order.

A second run adds what is new, in new files, and leaves those of earlier runs as they are: an output
that was begun with them stays valid. A run that was killed goes on after the units that it has
finished.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mediamill.pipeline.ray_cluster.trim_memory import trim_memory
from mediamill.pipeline.sources.arrow_texts import bool_array
from mediamill.pipeline.sources.detect import Known, SourceRules, open_source
from mediamill.pipeline.sources.ids import KeySet
from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.pipeline.sources.manifest_parts import DoneUnit, PartStore, State, same_version
from mediamill.pipeline.sources.unit import Source, Unit, expect_rows
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import check_manifest_schema

_PART_ROWS, _PART_BYTES = 65_536, 64 * 1024 * 1024
_READERS = 8  # units that are read at once
_QUEUED_TABLES = 2  # of each of them


@dataclass(frozen=True)
class Progress:
    """rows: found so far, new ones and known ones. new: of these. units: finished."""

    rows: int
    new: int
    units: int


@dataclass(frozen=True)
class BuildSummary:
    """The result.

    columns, rows: of the manifest. new: rows that this run added. gone: rows of earlier runs that
    the source no longer has; they stay. notes: what was assumed.
    """

    kind: str
    columns: tuple[str, ...]
    rows: int
    new: int
    gone: int
    left_out: LeftOut
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """Adds columns to tables. fields: of the columns. add: returns the table with them."""

    fields: tuple[pa.Field, ...]
    add: Callable[[pa.Table], pa.Table]


def build_manifest(
    url: str,
    output: Place,
    rules: SourceRules | None = None,
    suffix: str = ".parquet",
    probe: Probe | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> BuildSummary:
    """Writes the manifest of the source at `url` to the folder `output`, or what is new of it.

    suffix: of the files. Raises JobError for a source that cannot be read or has no media, and for
    ids of the user's that are not unique; then nothing is added.
    """
    store = PartStore(output, suffix)
    state = store.load()
    known = None if state.schema is None else Known(state.schema, state.settings)
    if known is not None and probe is not None:
        names = [name for name in known.schema.names if name not in {f.name for f in probe.fields}]
        known = Known(pa.schema([known.schema.field(name) for name in names]), known.settings)
    source = open_source(url, rules or SourceRules(), known)
    schema = pa.schema([*source.schema, *(probe.fields if probe else ())])
    _bind(state, source, schema, output)
    check_manifest_schema(schema, storage.redact(url))
    try:
        store.begin(state)
    except OSError as error:
        reason = storage.redact_text(str(error)).split("\n")[0]
        shown = storage.redact(output.url)
        raise JobError(f"{shown}: the manifest cannot be written: {reason}") from error
    try:
        return _Build(source, store, state, probe, on_progress).run()
    except JobError:
        store.discard()
        raise


def _bind(state: State, source: Source, schema: pa.Schema, output: Place) -> None:
    """Checks that a manifest goes on with what it was begun with."""
    shown = storage.redact(output.url)
    state.archives = source.archives
    if state.schema is None:
        state.schema, state.source, state.settings = schema, source.url, source.settings
        return
    for what, old, new in (
        ("source", storage.redact(state.source), storage.redact(source.url)),
        ("columns", ", ".join(state.schema.names), ", ".join(schema.names)),
        *((key, state.settings.get(key), value) for key, value in source.settings.items()),
    ):
        if old != new:
            raise JobError(
                f"{shown}: the manifest was made with the {what} {old}, and now has {new}: write "
                "to a new folder"
            )


@dataclass
class _Waiting:
    """Rows, and units that end with them, which are not written yet."""

    tables: list[pa.Table] = field(default_factory=list)
    done: dict[str, DoneUnit] = field(default_factory=dict)
    rows: int = 0
    size: int = 0


class _Build:
    def __init__(
        self,
        source: Source,
        store: PartStore,
        state: State,
        probe: Probe | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._source, self._store, self._state = source, store, state
        self._probe, self._on_progress = probe, on_progress
        self._keys: KeySet | None = None
        self._waiting = _Waiting()
        self._left_out = LeftOut()
        self._rows = self._new = self._finished = 0
        self._matched = 0  # rows of earlier runs that the source still has
        self._rows_before = state.rows

    def run(self) -> BuildSummary:
        with _read_units(self._unread()) as reads:
            for unit, tables, left_out in reads:
                self._add_unit(unit, tables, left_out)
        if self._waiting.tables:
            self._flush()
        self._left_out.update(self._source.left_out.entries())
        rows = self._rows_before + self._new
        expect_rows(storage.redact(self._source.url), rows, self._left_out)
        self._store.publish(self._state, self._waiting.done)
        return BuildSummary(
            self._source.kind,
            tuple(self._state.schema.names) if self._state.schema else (),
            rows,
            self._new,
            self._rows_before - self._matched,
            self._left_out,
            tuple(self._source.notes),
        )

    def _unread(self) -> Iterator[Unit]:
        """Yields the units that must be read; counts the others."""
        for unit in self._source.units:
            done = self._state.done.get(unit.name)
            same = done is not None and same_version(done.version, unit.version)
            if done is not None and same and (unit.version or done.run == self._state.run):
                self._left_out.update(done.left_out)
                self._matched += done.rows
                self._rows += done.rows
                self._finished += 1
            elif done is not None and unit.frozen:
                raise JobError(
                    f"{storage.redact(self._source.url)}: {unit.name} has changed since its "
                    "members were listed, so they lie elsewhere: write to a new folder"
                )
            else:
                yield unit

    def _add_unit(self, unit: Unit, tables: Iterator[pa.Table], left_out: LeftOut) -> None:
        is_known = unit.name in self._state.done or unit.name in self._state.begun
        is_known |= not unit.version  # a part of a listing may have another name now
        own = KeySet() if self._source.given_ids else None
        rows = 0
        for table in tables:
            rows += table.num_rows
            self._add(unit, self._new_rows(unit, table, own, is_known))
        self._left_out.update(left_out.entries())
        entries = tuple(left_out.entries())
        done = DoneUnit(unit.version, self._state.run, rows, entries)
        self._waiting.done[unit.name] = done
        self._finished += 1
        self._tell()

    def _new_rows(
        self, unit: Unit, table: pa.Table, own: KeySet | None, is_known: bool
    ) -> pa.Table:
        if self._keys is None:
            self._keys = self._store.keys()
        ids = table[c.ID].to_pylist()
        if None in ids:
            raise JobError(f"{unit.name}: found no id in a row, expected one in each")
        if own is not None:
            _expect_new(unit.name, ids, own.add(ids))
        is_new = self._keys.add(ids)
        if own is not None and not is_known:
            _expect_new(unit.name, ids, is_new)
        self._matched += int(np.count_nonzero(~is_new))
        self._rows += table.num_rows
        return table.filter(bool_array(is_new)) if not is_new.all() else table

    def _add(self, unit: Unit, table: pa.Table) -> None:
        self._new += table.num_rows
        if table.num_rows:
            if self._probe is not None:
                table = self._probe.add(table)
            waiting = self._waiting
            waiting.tables.append(table.cast(self._state.schema))
            waiting.rows += table.num_rows
            waiting.size += table.nbytes
            self._state.begun = {unit.name}
            if waiting.rows >= _PART_ROWS or waiting.size >= _PART_BYTES:
                self._flush()
        self._tell()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, _Waiting()
        table = pa.concat_tables(waiting.tables)
        self._store.write(self._state, table, waiting.done)
        waiting.tables.clear()
        del table
        trim_memory()
        self._state.done.update(waiting.done)

    def _tell(self) -> None:
        self._on_progress(Progress(self._rows, self._new, self._finished))


def _expect_new(name: str, ids: list[object], is_new: np.ndarray) -> None:
    """Raises JobError for ids that are not."""
    if is_new.all():
        return
    repeated = [ids[index] for index in np.flatnonzero(~is_new)[:5].tolist()]
    shown = ", ".join(f"{one!r:.80}" for one in repeated)
    raise JobError(
        f"{name}: found ids that occur more than once, expected each once: {shown}: name another "
        "column with --id-column"
    )


@contextmanager
def _read_units(
    units: Iterator[Unit],
) -> Iterator[Iterator[tuple[Unit, Iterator[pa.Table], LeftOut]]]:
    """Reads several units at once; yields them in their order, with their tables."""
    stop = threading.Event()
    readers: deque[_UnitReader] = deque()

    def in_order() -> Iterator[tuple[Unit, Iterator[pa.Table], LeftOut]]:
        while True:
            while len(readers) < _READERS and (unit := next(units, None)) is not None:
                readers.append(_UnitReader(unit, stop))
            if not readers:
                return
            reader = readers.popleft()
            yield reader.unit, reader.tables(), reader.left_out
            reader.thread.join()

    try:
        yield in_order()
    finally:
        stop.set()
        for reader in readers:
            reader.thread.join()


class _UnitReader:
    """A thread that reads one unit ahead of the builder."""

    def __init__(self, unit: Unit, stop: threading.Event) -> None:
        self.unit, self.left_out = unit, LeftOut()
        self._stop = stop
        self._queue: queue.Queue[pa.Table | BaseException | None] = queue.Queue(_QUEUED_TABLES)
        self.thread = threading.Thread(target=self._run, name="source-reader", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for table in self.unit.read(self.left_out):
                if not self._put(table):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - raised in the builder's thread
            self._put(error)

    def _put(self, item: pa.Table | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def tables(self) -> Iterator[pa.Table]:
        """Yields the unit's tables. Raises what reading them raised."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
