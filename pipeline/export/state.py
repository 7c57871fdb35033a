"""The state of an export, in a hidden folder of its target: what is done, and how it began.

`state.json` is replaced atomically after each shard; a shard's list of finished units is written
before. What a killed export has written after the last one is written again, with the same names.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

HIDDEN = ".mediamill-export"


@dataclass
class State:
    """bound: the options that decide what is written. shards: that are complete.

    unit, offset: the rows that come next, unless the unit is done.
    exported, left_out: rows; the latter by reason.
    """

    bound: dict[str, Any]
    shards: int = 0
    unit: str | None = None
    offset: int = 0
    exported: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


class StateFolder:
    """The stored state of one target."""

    def __init__(self, folder: Place) -> None:
        self.place = folder

    def load(self, bound: Mapping[str, Any]) -> State | None:
        """Returns the stored state. Raises JobError when it was begun with other options."""
        try:
            values = json.loads(storage.read(self.place / "state.json"))
        except FileNotFoundError:
            return None
        state = State(**values)
        for key, value in bound.items():
            if state.bound.get(key) != value:
                raise JobError(
                    f"{storage.redact(self.place.url)}: the export was begun with {key} = "
                    f"{state.bound.get(key)!r}, found {value!r}: choose another target, or begin "
                    "anew with --overwrite"
                )
        return state

    def begin(self, state: State) -> None:
        """Stores the state before anything else is written."""
        storage.put(self.place / "state.json", json.dumps(asdict(state)).encode())

    def done(self, state: State) -> set[str]:
        """Returns the names of the finished units."""
        return {name for note in self.notes(state) for name in note["units"]}

    def notes(self, state: State) -> Iterator[dict[str, Any]]:
        """Yields the note of each shard: its finished units, and the files that were written."""
        for number in range(state.shards):
            yield json.loads(storage.read(self._note(number)))

    def save(self, state: State, units: list[str], files: list[Any]) -> None:
        """Stores the state after one more shard."""
        storage.put(self._note(state.shards), json.dumps({"units": units, "files": files}).encode())
        state.shards += 1
        storage.put(self.place / "state.json", json.dumps(asdict(state)).encode())

    def clear(self) -> None:
        """Removes the state; first what says that there is one."""
        storage.remove(self.place / "state.json")
        for name in storage.list_files(self.place):
            if "lease" not in name:
                storage.remove(self.place / name)

    def _note(self, number: int) -> Place:
        return self.place / f"shard-{number:06}.json"
