"""The files of the output: names, contents, order, sizes; and rows of a faster attempt."""

import asyncio
import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.ledger import hive_paths, ledger, publish, recovery
from mediamill.pipeline.ledger.ledger import Commit, Ledger
from mediamill.pipeline.ledger.state import Counts, KnownFile
from mediamill.pipeline.records import ROW_STRUCT, parsed_schema
from mediamill.pipeline.stages.write import OutputRules, write_rows
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.result import result_schema


class Calls:
    """The ledger without Ray. `thief`: rows that another task finishes just before the commit."""

    def __init__(self, folder, rows_per_file=100, thief=None, names=("m",)):
        self.output = storage.resolve(str(folder))
        self.state = ledger.load(self.output)
        files = [KnownFile(name, 1000, "") for name in names]
        ledger.begin(self.output, self.state, "r", {}, files, rows_per_file)
        publish.permit(self.output, "r")
        self.ledger = Ledger(str(folder), "r")
        self.thief = thief
        self.commits = []

    def take(self, rows):
        commit = Commit("thief", {0: np.array(rows)}, Counts(ok=len(rows)))
        asyncio.run(self.ledger.commit(commit))

    def finished(self, rows):
        return asyncio.run(self.ledger.finished(rows))

    def commit(self, commit):
        if self.thief:
            self.take(self.thief)
            self.thief = None
        reply = asyncio.run(self.ledger.commit(commit))
        if not reply.finished:
            self.commits.append(commit)
        return reply

    def published(self, names):
        return asyncio.run(self.ledger.published(names))

    def flush(self):
        recovery.flush(self.output, self.state)


def write(folder, manifest, *tables, partition_by=(), rows_per_file=100):
    """Writes these tables as a run does, each in a task of its own."""
    calls = Calls(folder, rows_per_file)
    rules = rules_for(folder, manifest, partition_by, rows_per_file)
    for table in tables:
        write_rows(table, rules, calls)
    calls.flush()
    return calls


def rows_of(indices, **columns):
    manifest = check_manifest_schema(
        pa.schema(
            [("id", pa.int64()), ("uri", pa.string())]
            + [(name, values.type) for name, values in columns.items()]
        ),
        "m",
    )
    schema = parsed_schema(manifest)
    filled = {field.name: pa.nulls(len(indices), field.type) for field in schema}
    filled |= columns
    filled["id"] = pa.array(indices, pa.int64())
    filled[c.ATTEMPT] = pa.array([1] * len(indices), pa.int32())
    filled[c.ERROR_CODE] = pa.array(["engine_oom" if i == 5 else None for i in indices])
    filled[c.STATUS] = pa.array(["error" if i == 5 else None for i in indices])
    filled[c.OUTPUT_TOKENS] = pa.array([3] * len(indices), pa.int32())
    filled[c.ROW] = pa.StructArray.from_arrays(
        [pa.array([0] * len(indices), pa.int32()), pa.array(indices, pa.int64())],
        fields=list(ROW_STRUCT),
    )
    return manifest, pa.table(filled, schema=schema)


def rules_for(folder, manifest, partition_by=(), rows_per_file=100):
    constants = {c.MODEL: "m", c.FINGERPRINT: "f", c.RUN_ID: "r"}
    return OutputRules(str(folder), result_schema(manifest), partition_by, rows_per_file, constants)


def files(folder):
    return [name for name in storage.list_files(storage.resolve(str(folder))) if name[0] != "_"]


def test_files_are_sorted_and_full_and_the_same_each_time(tmp_path):
    order = np.random.default_rng(0).permutation(10).tolist()
    manifest, table = rows_of(order)
    for name in ("one", "two"):
        write(tmp_path / name, manifest, table, rows_per_file=4)
    found = files(tmp_path / "one")
    assert found == files(tmp_path / "two")
    for name in found:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    ids = [pq.read_table(tmp_path / "one" / name)["id"].to_pylist() for name in found]
    assert ids == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    whole = pads.dataset(tmp_path / "one").to_table()
    assert whole.schema.equals(result_schema(manifest))
    assert whole["status"].to_pylist() == ["ok"] * 5 + ["error"] + ["ok"] * 4


def test_many_tasks_and_folders_make_few_files(tmp_path):
    rng = np.random.default_rng(1)
    kinds, per_file = 5, 7
    tables = []
    for indices in np.array_split(rng.permutation(300), 60):
        names = [f"k{int(index) % kinds}" for index in indices]
        manifest, table = rows_of(indices.tolist(), kind=pa.array(names))
        tables.append(table)
    calls = Calls(tmp_path, per_file)
    rules = rules_for(tmp_path, manifest, ("kind",), per_file)
    max_staged = 0
    for number, table in enumerate(tables):
        write_rows(table, rules, calls)
        # Rows that fill a file are visible at once, the others are hidden.
        for kind in range(kinds):
            done = sum(
                int(i) % kinds == kind
                for one in tables[: number + 1]
                for i in one["id"].to_pylist()
            )
            seen = list((tmp_path / f"kind=k{kind}").glob("*.parquet"))
            assert [pq.read_metadata(path).num_rows for path in seen] == [per_file] * (
                done // per_file
            )
        max_staged = max(max_staged, len(list((tmp_path / "_mediamill" / "staged").iterdir())))
    calls.flush()
    assert len(files(tmp_path)) == kinds * -(-(300 // kinds) // per_file)
    found = pads.dataset(tmp_path, partitioning="hive").to_table()
    assert sorted(found["id"].to_pylist()) == list(range(300))
    for name in files(tmp_path):
        ids = pq.read_table(tmp_path / name)["id"].to_pylist()
        assert ids == sorted(ids)
    assert not list((tmp_path / "_mediamill" / "staged").iterdir())
    # Only rows that are not visible are staged: less than a file's for each folder.
    assert max_staged <= kinds * (per_file - 1)


def test_one_task_with_more_rows_than_a_file(tmp_path):
    manifest, table = rows_of(list(range(25)))
    calls = Calls(tmp_path, 10)
    write_rows(table, rules_for(tmp_path, manifest, (), 10), calls)
    assert [pq.read_metadata(tmp_path / name).num_rows for name in files(tmp_path)] == [10, 10]
    write_rows(rows_of(list(range(25, 40)))[1], rules_for(tmp_path, manifest, (), 10), calls)
    assert [pq.read_metadata(tmp_path / name).num_rows for name in files(tmp_path)] == [10] * 4
    assert not list((tmp_path / "_mediamill" / "staged").iterdir())


def test_groups_of_a_task_that_died_are_published_by_another(tmp_path):
    now = [0.0]
    calls = Calls(tmp_path, 2)
    calls.ledger = Ledger(str(tmp_path), "r", clock=lambda: now[0])
    manifest, table = rows_of([0, 1])
    rules = rules_for(tmp_path, manifest, (), 2)
    commit = calls.commit
    calls.commit = lambda one: commit(one).__class__()  # the task dies with the ledger's reply
    write_rows(table, rules, calls)
    calls.commit = commit
    write_rows(rows_of([2])[1], rules, calls)
    assert files(tmp_path) == []  # the first task may still be at work
    now[0] = 1000.0
    write_rows(rows_of([4])[1], rules, calls)
    assert pads.dataset(tmp_path).to_table()["id"].to_pylist() == [0, 1, 2, 4]


def test_counts_of_a_commit(tmp_path):
    manifest, table = rows_of(list(range(8)))
    counts = write(tmp_path, manifest, table).commits[0].counts
    assert (counts.ok, counts.errors, counts.output_tokens) == (7, {"engine_oom": 1}, 24)
    assert counts.rows == 8


def test_finished_rows_are_not_written_again(tmp_path):
    manifest, table = rows_of(list(range(10)))
    calls = Calls(tmp_path, thief=[2, 3])
    calls.take([0, 9])
    write_rows(table, rules_for(tmp_path, manifest), calls)
    write_rows(table, rules_for(tmp_path, manifest), calls)
    assert len(calls.commits) == 1
    calls.flush()
    assert pads.dataset(tmp_path).to_table()["id"].to_pylist() == [1, 4, 5, 6, 7, 8]
    assert len(files(tmp_path)) == 1


VALUES = [
    "plain",
    "",
    None,
    "a/b=c",
    "50%",
    "ä ö",
    "..",
    "x y:z",
    "__HIVE",
    'quote"',
    "tab\tnew\nline",
    "C:\\dir",
    "{}[]^*?",
]


def test_every_partition_value_is_read_back(tmp_path):
    kinds = pa.array(VALUES)
    manifest, table = rows_of(list(range(len(VALUES))), kind=kinds)
    write(tmp_path, manifest, table, partition_by=("kind",))
    found = pads.dataset(tmp_path, partitioning="hive").to_table()
    assert dict(zip(found["id"].to_pylist(), found["kind"].to_pylist(), strict=True)) == dict(
        enumerate(VALUES)
    )
    assert all("kind" not in pq.read_schema(tmp_path / name).names for name in files(tmp_path))
    folders = [hive_paths.folder(["kind"], [value]) for value in VALUES]
    assert [hive_paths.pairs(folder) for folder in folders] == [[("kind", v)] for v in VALUES]


@pytest.mark.parametrize("values", [["", "a", "b"], ["", "", ""], ["", None, "a"]])
def test_an_empty_value_is_none_of_the_others(tmp_path, values):
    """Readers that support nulls read it back; pandas does when the partitioning is given."""
    manifest, table = rows_of([0, 1, 2], kind=pa.array(values))
    write(tmp_path, manifest, table, partition_by=("kind",))
    hive = pads.partitioning(flavor="hive")
    found = {
        "pyarrow": pads.dataset(tmp_path, partitioning="hive").to_table().to_pandas(),
        "schema": pq.read_table(tmp_path, partitioning=hive).to_pandas(),
        "pandas": pd.read_parquet(tmp_path, partitioning=hive),
        "pandas, by Arrow": pd.read_parquet(tmp_path, dtype_backend="pyarrow"),
    }
    if None not in values:
        found["pandas as it is"] = pd.read_parquet(tmp_path)
    for reader, frame in found.items():
        kinds = [None if pd.isna(kind) else str(kind) for kind in frame.sort_values("id")["kind"]]
        assert kinds == values, reader


@pytest.mark.parametrize(
    ("values", "folders"),
    [
        (pa.array([3, -4, None]), ["n=-4", "n=3", "n=__HIVE_DEFAULT_PARTITION__"]),
        (pa.array([True, False, None]), ["n=__HIVE_DEFAULT_PARTITION__", "n=false", "n=true"]),
        (pa.array([datetime.date(2024, 1, 31)] * 3), ["n=2024-01-31"]),
    ],
)
def test_partition_folders_of_other_types(tmp_path, values, folders):
    manifest, table = rows_of([0, 1, 2], n=values)
    write(tmp_path, manifest, table, partition_by=("n",))
    assert sorted({name.partition("/")[0] for name in files(tmp_path)}) == folders
