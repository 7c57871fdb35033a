"""Files of the output: names, contents, order, sizes; and rows that another try had first."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline import partitions, storage
from pipeline.ledger_state import LedgerState
from pipeline.records import ROW_STRUCT, parsed_schema
from pipeline.write import OutputRules, write_rows
from schemas import columns as c
from schemas.manifest import check_manifest_schema
from schemas.result import result_schema


class Calls:
    """A ledger in memory. `thief` gives it rows to take between the question and the commit."""

    def __init__(self, thief=None):
        self.state = LedgerState()
        file = {"number": 0, "name": "m", "rows": 1000, "digest": ""}
        self.state.apply({"kind": "start", "run": "r", "files": [file]})
        self.thief = thief
        self.commits = []

    def taken(self, rows):
        return self.state.taken(rows)

    def commit(self, commit):
        if self.thief:
            self.state._mark(0, np.array(self.thief))
            self.thief = None
        taken = self.state.taken(commit.rows)
        if not taken:
            self.commits.append(commit)
            self.state._mark(0, commit.rows[0])
        return taken


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
    return [name for name in storage.files_below(storage.resolve(str(folder))) if name[0] != "_"]


def test_files_are_sorted_bounded_and_the_same_each_time(tmp_path):
    order = np.random.default_rng(0).permutation(10).tolist()
    manifest, table = rows_of(order)
    for name in ("one", "two"):
        write_rows(table, rules_for(tmp_path / name, manifest, rows_per_file=4), Calls())
    expected = [f"part-00000-{first:010}.parquet" for first in (0, 4, 8)]
    assert files(tmp_path / "one") == files(tmp_path / "two") == expected
    for name in expected:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    found = pads.dataset(tmp_path / "one").to_table()
    assert found["id"].to_pylist() == list(range(10))
    assert found.schema.equals(result_schema(manifest))
    assert found["status"].to_pylist() == ["ok"] * 5 + ["error"] + ["ok"] * 4
    assert not list((tmp_path / "one" / "_mediamill").glob("**/*.staged"))


def test_what_is_counted(tmp_path):
    manifest, table = rows_of(list(range(8)))
    calls = Calls()
    write_rows(table, rules_for(tmp_path, manifest), calls)
    counts = calls.commits[0].counts
    assert (counts.ok, counts.errors, counts.output_tokens) == (7, {"engine_oom": 1}, 24)
    assert counts.rows == 8


def test_finished_rows_are_not_written_again(tmp_path):
    manifest, table = rows_of(list(range(10)))
    calls = Calls(thief=[2, 3])
    calls.state._mark(0, np.array([0, 9]))
    write_rows(table, rules_for(tmp_path, manifest), calls)
    assert pads.dataset(tmp_path).to_table()["id"].to_pylist() == [1, 4, 5, 6, 7, 8]
    write_rows(table, rules_for(tmp_path, manifest), calls)
    assert len(calls.commits) == 1
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
    write_rows(table, rules_for(tmp_path, manifest, ("kind",)), Calls())
    found = pads.dataset(tmp_path, partitioning="hive").to_table()
    assert dict(zip(found["id"].to_pylist(), found["kind"].to_pylist(), strict=True)) == dict(
        enumerate(VALUES)
    )
    assert all("kind" not in pq.read_schema(tmp_path / name).names for name in files(tmp_path))
    assert [partitions.values(partitions.folder(["kind"], [v]))["kind"] for v in VALUES] == VALUES


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
    write_rows(table, rules_for(tmp_path, manifest, ("n",)), Calls())
    assert sorted({name.partition("/")[0] for name in files(tmp_path)}) == folders
