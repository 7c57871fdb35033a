"""Carries rows from the source to shards, and keeps the state of the export up to date."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mediamill.pipeline.export.formats import Shard
from mediamill.pipeline.export.sidecar import Sidecars
from mediamill.pipeline.export.source import Source, Unit
from mediamill.pipeline.export.state import State, StateFolder
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.arrow_convert import filter_rows

_SHARD_BYTES = 512 * 1024**2
_INDEX = "__mediamill_index__"


class Run:
    """One call's way through the rows."""

    def __init__(
        self,
        source: Source,
        state: State,
        folder: StateFolder,
        target: Place,
        chosen: Mapping[str, pc.Expression],
    ) -> None:
        self._source, self._state, self._folder = source, state, folder
        self._target, self._chosen = target, chosen
        self._rest: pa.Table | None = None
        # Since the shard that was saved last.
        self._finished: list[str] = []
        self._left_out: Counter[str] = Counter()

    def execute(
        self, units: list[Unit], make: Callable[[int, Path], Shard], rows_per_shard: int
    ) -> None:
        """Exports all rows of the units that are not exported yet.

        make: the next shard, from its number and a folder for its files.
        """
        for name in storage.list_files(self._target / f"{self._state.shards:06}"):
            storage.remove(self._target / f"{self._state.shards:06}" / name)  # of a killed export
        stream = self._stream(self._pending(units))
        ended = False
        while not ended:
            with tempfile.TemporaryDirectory() as scratch:
                shard = make(self._state.shards, Path(scratch))
                ended = self._fill(shard, stream, rows_per_shard)
                files = shard.close()
                if not shard.rows and self._state.shards:
                    files = []
                for name, path in files:
                    storage.put_file(self._target / name, path)
                self._left_out += shard.left_out
                if shard.rows or files or self._finished or self._left_out:
                    self._save(shard, [name for name, _ in files])

    def _pending(self, units: list[Unit]) -> list[tuple[Unit, int]]:
        """Returns the units that are not done, the one that was begun first, with its offset."""
        state, done = self._state, self._folder.done(self._state)
        left = [unit for unit in units if unit.name not in done]
        # Rows that a retry has replaced are exported again, unless they come with all others.
        included = {name for unit in left if unit.name != state.unit for name in unit.labels}
        left = [unit for unit in left if unit.name not in included]
        left.sort(key=lambda unit: (unit.name != state.unit, unit.name))
        return [
            (self._begun(unit), state.offset if unit.name == state.unit else 0) for unit in left
        ]

    def _begun(self, unit: Unit) -> Unit:
        """Returns the unit; of replaced rows, those that a killed export had exported before."""
        state = self._state
        if unit.positions is None or unit.name.rpartition("@")[0] != state.unit:
            return unit
        positions = unit.positions[unit.positions < state.offset]
        return replace(unit, rows=positions.size, positions=positions)

    def _stream(self, units: list[tuple[Unit, int]]) -> Iterator[pa.Table]:
        for unit, skip in units:
            self._state.unit, self._state.offset = unit.name, skip
            yield from self._source.read(unit, skip)
            self._finished.append(unit.name)
            if not skip:
                self._finished += unit.labels
            self._state.unit, self._state.offset = None, 0

    def _fill(self, shard: Shard, stream: Iterator[pa.Table], rows: int) -> bool:
        """Adds rows to the shard until it is full. Returns whether there are no more."""
        while shard.rows < rows and shard.size < _SHARD_BYTES:
            table = next(stream, None) if self._rest is None else self._rest
            if table is None:
                return True
            chosen = table.append_column(_INDEX, pa.array(range(table.num_rows), pa.int64()))
            counts = []
            for expression in self._chosen.values():
                chosen = filter_rows(chosen, expression)
                counts.append(chosen[_INDEX])
            room = rows - shard.rows
            stop = table.num_rows
            if chosen.num_rows > room:
                chosen = chosen.slice(0, room)
                stop = chosen[_INDEX][-1].as_py() + 1
            before = stop
            for reason, indices in zip(self._chosen, counts, strict=True):
                left = pc.sum(pc.less(indices, stop)).as_py() or 0
                if before > left:
                    self._left_out[reason] += before - left
                before = left
            if chosen.num_rows:
                shard.add(chosen.drop_columns([_INDEX]))
            self._rest = table.slice(stop) if stop < table.num_rows else None
            self._state.offset += stop
        return False

    def _save(self, shard: Shard, names: list[str]) -> None:
        self._state.exported += shard.rows
        self._state.left_out = dict(Counter(self._state.left_out) + self._left_out)
        files = shard.written if isinstance(shard, Sidecars) else names
        self._folder.save(self._state, self._finished, list(files))
        self._finished, self._left_out = [], Counter()
