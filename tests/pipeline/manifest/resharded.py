"""A manifest that is written in other files between runs, and runs without Ray and models.

A run makes the text "text of ID" for each row, with the real check, ledger, read and write stages.
"""

import random
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger import ledger, recovery
from mediamill.pipeline.ledger.finished_ids import read_finished_ids
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.manifest.resharding import check_files
from mediamill.pipeline.records import parsed_schema
from mediamill.pipeline.stages.read import plan_splits, read_split
from mediamill.pipeline.stages.write import OutputRules, write_rows
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.result import result_schema
from tests.pipeline.ledger.kill_points import Calls
from tests.pipeline.world import write_manifest

HEADER = {"fingerprint": "f", "parts": {}, "layout": {}}
FILE_ROWS = 3


class World:
    """A manifest's files, by name the ids of their rows; and an output.

    finished: the ids of the rows that were finished when the last run began.
    """

    def __init__(self, folder, output, id_type=None):
        self.folder, self.output = folder, storage.resolve(str(output))
        self.id_type = id_type or pa.string()
        self.files, self.stored, self.finished, self.runs = {}, {}, set(), 0

    @property
    def ids(self):
        return [value for ids in self.files.values() for value in ids]

    def store(self):
        """Writes the files that have changed, and removes the others."""
        for name in self.stored.keys() - self.files.keys():
            (self.folder / name).unlink()
        for name, ids in self.files.items():
            if self.stored.get(name) != ids:
                columns = {
                    "id": pa.array(ids, self.id_type),
                    "uri": pa.array([f"uri of {value}" for value in ids], pa.string()),
                    "kind": pa.array(
                        ["ab"[zlib.crc32(str(value).encode()) % 2] for value in ids], pa.string()
                    ),
                }
                write_manifest(self.folder / name, pa.table(columns), row_group_size=7)
        self.stored = {name: list(ids) for name, ids in self.files.items()}

    def check(self):
        state = ledger.load(self.output)
        manifest = open_manifest(str(self.folder), state.files)
        return manifest, state, check_files(manifest, state, self.output)

    def begin(self):
        """Begins a run; returns its name, the manifest and the state."""
        manifest, state, checked = self.check()
        self.runs += 1
        name = f"run-{self.runs}"
        checked.new_ids.save()
        ledger.begin(self.output, state, name, HEADER, checked.files, FILE_ROWS, checked.resharding)
        recovery.mark_unfinished(self.output)
        recovery.recover(self.output, state)
        self.finished = set()
        read_finished_ids(self.output, state, lambda ids: self.finished.update(ids.to_pylist()))
        assert len(self.finished) == state.counts.rows
        return name, manifest, state

    def run(self, limit=None, calls=Calls):
        """One run over all unfinished rows, or over `limit` of them, and then it dies."""
        name, manifest, state = self.begin()
        writer = calls(self.output, name)
        left = limit
        for split in plan_splits(manifest, state):
            for table in read_split(split, manifest.schema, manifest.partitions):
                for start in range(0, table.num_rows, 3):
                    rows = table.slice(start, 3 if left is None else min(3, left))
                    if rows.num_rows:
                        self.write(rows, manifest, name, writer)
                    if left is not None:
                        left -= rows.num_rows
        if limit is None:
            recovery.flush(self.output, state)
            if ledger.end(self.output, state, {}):
                recovery.mark_finished(self.output, "{}")
        return ledger.load(self.output)

    def write(self, table, manifest, run, calls):
        schema = parsed_schema(manifest.schema)
        ids = table["id"].to_pylist()
        assert self.finished.isdisjoint(ids), "a finished row is answered again"
        columns = {
            field.name: table[field.name]
            if field.name in table.column_names
            else pa.nulls(len(ids), field.type)
            for field in schema
        }
        columns[c.TEXT] = pa.array([f"text of {value}" for value in ids])
        constants = {c.MODEL: "m", c.FINGERPRINT: "f", c.RUN_ID: run}
        rules = OutputRules(
            self.output.url, result_schema(manifest.schema), ("kind",), FILE_ROWS, constants
        )
        write_rows(pa.table(columns, schema=schema), rules, calls)

    def visible(self):
        """The ids that a reader sees, sorted."""
        names = [name for name in storage.list_files(self.output) if name.endswith(".parquet")]
        found = []
        for name in names:
            with self.output.fs.open((self.output / name).path, "rb") as file:
                found += pq.read_table(file, columns=["id", "text"]).to_pylist()
        assert all(row["text"] == f"text of {row['id']}" for row in found)
        return sorted(row["id"] for row in found)

    def assert_finished(self):
        """Each row of the manifest is once in the output, and the ledger knows it."""
        assert self.visible() == sorted(self.ids)
        manifest, state, _ = self.check()
        assert state.counts.rows == manifest.rows == len(self.ids)
        assert plan_splits(manifest, state) == []
        assert recovery.is_settled(self.output, state)


class Reshuffler:
    """Draws changes of a world's files that keep its ids, and some that add new ones."""

    def __init__(self, world, seed):
        self.world, self.draw = world, random.Random(seed)
        self.fresh = self.names = 0

    def new_ids(self, count):
        self.fresh += count
        numbers = range(self.fresh - count, self.fresh)
        return [n if pa.types.is_integer(self.world.id_type) else f"id-{n}" for n in numbers]

    def new_name(self):
        self.names += 1
        folder = self.draw.choice(["", "", "day/", "other/deep/"])
        return f"{folder}{self.draw.randrange(100):02}-{self.names}.parquet"

    def name(self):
        return self.draw.choice(sorted(self.world.files))

    def add(self):
        self.world.files[self.new_name()] = self.new_ids(self.draw.randrange(12))

    def grow(self):
        self.world.files[self.name()] += self.new_ids(self.draw.randrange(6))

    def insert(self):
        ids = self.world.files[self.name()]
        at = self.draw.randrange(len(ids) + 1)
        ids[at:at] = self.new_ids(2)

    def shuffle(self):
        self.draw.shuffle(self.world.files[self.name()])

    def rename(self):
        self.world.files[self.new_name()] = self.world.files.pop(self.name())

    def swap(self):
        one, other = self.name(), self.name()
        files = self.world.files
        files[one], files[other] = files[other], files[one]

    def split(self):
        ids = self.world.files.pop(self.name())
        at = self.draw.randrange(len(ids) + 1)
        self.world.files[self.new_name()], self.world.files[self.new_name()] = ids[:at], ids[at:]

    def cut(self):
        ids = self.world.files[self.name()]
        at = self.draw.randrange(len(ids) + 1)
        self.world.files[self.new_name()] = ids[at:]
        del ids[at:]

    def merge(self):
        first, last = self.world.files.pop(self.name()), []
        if self.world.files:
            last = self.world.files.pop(self.name())
        self.world.files[self.new_name()] = first + last

    def append(self):
        """The rows of one file go to the end of another one."""
        if len(self.world.files) > 1:
            moved = self.world.files.pop(self.name())
            self.world.files[self.name()] += moved

    def compact(self):
        """All rows, in another order, in some files of new or old names."""
        ids, count = self.world.ids, self.draw.randrange(1, 4)
        self.draw.shuffle(ids)
        names = [*sorted(self.world.files), self.new_name(), self.new_name(), self.new_name()]
        chosen = self.draw.sample(names, count)
        self.world.files = {name: ids[number::count] for number, name in enumerate(chosen)}

    def change(self):
        changes = [
            *(self.add, self.grow, self.insert, self.shuffle, self.rename, self.swap, self.split),
            *(self.cut, self.merge, self.append, self.compact),
        ]
        for _ in range(self.draw.randrange(1, 4)):
            self.draw.choice(changes)()
        self.world.store()
