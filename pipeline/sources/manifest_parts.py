"""Stores a manifest that is being made as Parquet parts, and what has been read for it.

    part-000000.parquet ...      the manifest
    _sources/state.json          the source, and whether the last run was complete
    _sources/new/part-...        parts of a run that is not complete

Each part's footer says which units are finished with it, so that both are written at once. A run
that was killed is continued; its parts become visible when it is complete.
"""

import base64
import io
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ray_cluster.trim_memory import trim_memory
from mediamill.pipeline.sources.ids import KeySet
from mediamill.pipeline.sources.unit import BATCH_ROWS
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError

HIDDEN = "_sources"
_STATE, _NEW = "state.json", "new"
_FOOTER_KEY = b"mediamill.sources"
_ROW_GROUP = 16_384


@dataclass(frozen=True)
class DoneUnit:
    """A unit that was read to its end. run: the one that did. left_out: LeftOut.entries."""

    version: str
    run: str
    rows: int
    left_out: tuple[tuple[str, int, str], ...] = ()


@dataclass
class State:
    """What is known of a manifest.

    run: the id of the current run. resumed: whether it continues a killed one.
    schema, source, settings: None and empty before the first run.
    done: by name of the unit. begun: units of which some rows are stored.
    rows: in all parts. next_part: the number of the next one.
    archives: see Source.
    """

    run: str
    resumed: bool = False
    schema: pa.Schema | None = None
    source: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    done: dict[str, DoneUnit] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    rows: int = 0
    next_part: int = 0
    archives: str | None = None


class PartStore:
    """The parts of one manifest. suffix: of the visible files."""

    def __init__(self, output: Place, suffix: str = ".parquet") -> None:
        self._output, self._suffix = output, suffix
        self._hidden = output / HIDDEN
        self._new = self._hidden / _NEW
        self._stored: bytes | None = None
        self._parts: list[Place] = []

    def load(self) -> State:
        """Reads what earlier runs have stored. Raises JobError for a folder of another's."""
        shown = storage.redact(self._output.url)
        names = storage.list_files(self._output)
        visible = [n for n in names if n[0] not in "._"]
        has_state = f"{HIDDEN}/{_STATE}" in names
        if visible and not has_state:
            raise JobError(
                f"{shown}: the folder holds '{visible[0]}', which this command did not write, "
                "expected an empty folder or nothing yet"
            )
        state = State(uuid.uuid4().hex)
        if not has_state:
            return state
        self._stored = storage.read(self._hidden / _STATE)
        stored = json.loads(self._stored)
        if stored["run"] is not None:
            state.run, state.resumed = stored["run"], True
        state.schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored["schema"])))
        state.source, state.settings = stored["source"], stored["settings"]
        state.archives = stored.get("archives")
        self._add_units(state, stored["units"])
        staged = f"{HIDDEN}/{_NEW}/"
        parts = [
            name
            for name in names
            if name.endswith(self._suffix) and ("/" not in name or name.startswith(staged))
        ]
        for name in sorted(parts, key=lambda name: name.rpartition("/")[2]):
            place = self._output / name
            with place.fs.open(place.path, "rb") as file, pq.ParquetFile(file) as parquet:
                state.rows += parquet.metadata.num_rows
                own = (parquet.metadata.metadata or {}).get(_FOOTER_KEY, b"{}")
            footer = json.loads(own)
            self._add_units(state, footer.get("done", {}))
            state.begun.update(footer.get("begun", ()))
            number = name.rpartition("/")[2].removeprefix("part-").removesuffix(self._suffix)
            state.next_part = max(state.next_part, int(number) + 1 if number.isdigit() else 0)
            self._parts.append(place)
        return state

    @staticmethod
    def _add_units(state: State, units: Mapping[str, Any]) -> None:
        for name, (version, run, rows, left_out) in units.items():
            entries = tuple((str(r), int(n), str(e)) for r, n, e in left_out)
            state.done[name] = DoneUnit(version, run, rows, entries)

    def keys(self) -> KeySet:
        """The ids of all parts that `load` has found."""
        keys = KeySet()
        for place in self._parts:
            with place.fs.open(place.path, "rb") as file, pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS, columns=[c.ID]):
                    keys.add(batch.column(0).to_pylist())
        trim_memory()
        return keys

    def begin(self, state: State) -> None:
        """Records that a run has begun."""
        self._put_state(state, state.run)

    def write(self, state: State, table: pa.Table, done: Mapping[str, DoneUnit]) -> None:
        """Writes a part with the units that end in it, atomically."""
        footer = {"done": _as_json(done), "begun": sorted(state.begun)[-64:]}
        metadata = {**(table.schema.metadata or {}), _FOOTER_KEY: json.dumps(footer).encode()}
        buffer = io.BytesIO()
        pq.write_table(
            table.replace_schema_metadata(metadata),
            buffer,
            compression="zstd",
            row_group_size=_ROW_GROUP,
        )
        storage.put(self._new / self._name(state.next_part), buffer.getvalue())
        state.next_part += 1

    def _name(self, number: int) -> str:
        return f"part-{number:06d}{self._suffix}"

    def publish(self, state: State, rest: Mapping[str, DoneUnit]) -> None:
        """Makes the new parts visible. rest: units that ended in no part."""
        for name in storage.list_files(self._new):
            if name.endswith(self._suffix):
                storage.move(self._new / name, self._output / name)
        state.done.update(rest)
        self._put_state(state, None, rest)

    def discard(self) -> None:
        """Removes what an unfinished run has stored, as if it had not begun."""
        for name in storage.list_files(self._new):
            storage.remove(self._new / name)
        if self._stored is not None and json.loads(self._stored)["run"] is None:
            storage.put(self._hidden / _STATE, self._stored)
        else:
            storage.remove(self._hidden / _STATE)

    def _put_state(
        self, state: State, run: str | None, rest: Mapping[str, DoneUnit] | None = None
    ) -> None:
        assert state.schema is not None
        before = json.loads(self._stored)["units"] if self._stored else {}
        stored = {
            "source": state.source,
            "settings": state.settings,
            "schema": base64.b64encode(state.schema.serialize().to_pybytes()).decode(),
            "run": run,
            "archives": state.archives,
            "units": {**before, **_as_json(rest or {})},
        }
        storage.put(self._hidden / _STATE, json.dumps(stored).encode())


def _as_json(units: Mapping[str, DoneUnit]) -> dict[str, Any]:
    return {
        name: [unit.version, unit.run, unit.rows, [list(entry) for entry in unit.left_out]]
        for name, unit in units.items()
    }


def same_version(before: str, now: str) -> bool:
    """Leaves out the inode change time of a local file: new permissions change it, too."""
    return before.split(" ")[:2] == now.split(" ")[:2]
