"""Unfinished rows come out of a manifest with their ordinals, the others do not."""

import asyncio

import numpy as np
import pyarrow as pa
import pytest

from pipeline import ledger, read, storage
from pipeline.ledger import Commit, Ledger
from pipeline.ledger_state import Counts, KnownFile, LedgerState
from pipeline.manifest import open_manifest
from pipeline.read import pieces, read_piece
from pipeline.records import read_schema
from tests.pipeline.world import write_manifest


def ids(first, count):
    return pa.table(
        {
            "id": [f"i{number}" for number in range(first, first + count)],
            "uri": ["u"] * count,
            "n": pa.array(range(count), pa.int16()),
        }
    )


@pytest.fixture
def begun(tmp_path):
    """A manifest of two files, and a function that gives its ledger after some rows were done."""
    write_manifest(tmp_path / "m" / "k=7" / "a.parquet", ids(0, 100), row_group_size=10)
    write_manifest(tmp_path / "m" / "k=8" / "b.parquet", ids(100, 5))
    manifest = open_manifest(str(tmp_path / "m"))
    output = storage.resolve(str(tmp_path / "out"))
    state = ledger.load(output)
    # The ledger has met the files in another order than the manifest lists them.
    files = [KnownFile(f.name, f.rows, "d") for f in reversed(manifest.files)]
    ledger.begin(output, state, "run", {"fingerprint": "", "parts": {}, "layout": {}}, files)

    def done(**rows):
        numbers = {"a": 1, "b": 0}
        found = {numbers[name]: np.array(indices) for name, indices in rows.items()}
        asyncio.run(Ledger(output.url, "run").commit(Commit("t", found, Counts())))
        return ledger.load(output)

    return manifest, state, done


def read_all(manifest, state):
    tables = [
        table
        for piece in pieces(manifest, state)
        for table in read_piece(piece, manifest.schema, manifest.partitions)
    ]
    return pa.concat_tables(tables)


def test_all_rows_with_ordinals_and_partition_columns(begun):
    manifest, state, _ = begun
    table = read_all(manifest, state)
    assert table.schema.equals(read_schema(manifest.schema))
    assert table["id"].to_pylist() == [f"i{number}" for number in range(105)]
    assert table["k"].to_pylist() == [7] * 100 + [8] * 5
    ordinals = [(row["file"], row["index"]) for row in table["row"].to_pylist()]
    assert ordinals == [(1, i) for i in range(100)] + [(0, i) for i in range(5)]
    assert table["error_code"].null_count == 105


def test_finished_rows_are_left_out_and_finished_files_not_opened(begun, tmp_path):
    manifest, _, done = begun
    state = done(a=[i for i in range(100) if i not in (0, 33, 99)], b=list(range(5)))
    (tmp_path / "m" / "k=8" / "b.parquet").unlink()
    table = read_all(manifest, state)
    assert table["id"].to_pylist() == ["i0", "i33", "i99"]
    assert [row["index"] for row in table["row"].to_pylist()] == [0, 33, 99]


def test_only_row_groups_with_work_are_read(begun, monkeypatch):
    manifest, _, done = begun
    monkeypatch.setattr(read, "_TASK_ROWS", 20)
    state = done(a=list(range(45)), b=[0])
    found = pieces(manifest, state)
    assert [(piece.row_groups, piece.start, piece.rows) for piece in found] == [
        ((4, 5), 40, 20),
        ((6, 7), 60, 20),
        ((8, 9), 80, 20),
        ((0,), 0, 5),
    ]
    assert [int(piece.mask().sum()) for piece in found] == [15, 20, 20, 4]
    assert read_all(manifest, state)["id"].to_pylist() == [
        *(f"i{number}" for number in range(45, 100)),
        *(f"i{number}" for number in range(101, 105)),
    ]


def test_large_pieces_come_in_bounded_tables(begun, monkeypatch):
    manifest, state, _ = begun
    monkeypatch.setattr(read, "_BATCH_ROWS", 16)
    piece = pieces(manifest, state)[0]
    sizes = [t.num_rows for t in read_piece(piece, manifest.schema, manifest.partitions)]
    assert max(sizes) <= 16
    assert sum(sizes) == 100


def test_the_columns_of_files_may_differ_in_order(tmp_path):
    write_manifest(tmp_path / "a.parquet", ids(0, 2))
    write_manifest(tmp_path / "b.parquet", ids(2, 2).select(["n", "uri", "id"]))
    manifest = open_manifest(str(tmp_path))
    state = LedgerState()
    for number, file in enumerate(manifest.files):
        state.apply(
            {
                "kind": "start",
                "run": "run",
                "files": [{"number": number, "name": file.name, "rows": 2, "digest": ""}],
            }
        )
    table = read_all(manifest, state)
    assert table["id"].to_pylist() == ["i0", "i1", "i2", "i3"]
    assert table["n"].to_pylist() == [0, 1, 0, 1]
