"""Unfinished rows are read with their ordinals; finished rows are not read."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.faults import PermanentError
from mediamill.pipeline.ledger.state import LedgerState, text_of
from mediamill.pipeline.manifest.manifest import Manifest, ManifestFile, open_manifest
from mediamill.pipeline.records import read_schema
from mediamill.pipeline.stages import read
from mediamill.pipeline.stages.read import (
    ManifestChangedError,
    ManifestDatasource,
    plan_splits,
    read_split,
)
from mediamill.pipeline.storage.storage import resolve
from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import check_manifest_schema
from tests.pipeline.world import write_manifest


def ids(first, count):
    return pa.table(
        {
            "id": pa.array([f"i{number}" for number in range(first, first + count)], pa.string()),
            "uri": pa.array(["u"] * count, pa.string()),
            "n": pa.array(np.arange(count) % 100, pa.int16()),
        }
    )


def ledger_of(manifest, done=None, order=1):
    """The ledger that knows the manifest's files; done: finished rows by file name."""
    state = LedgerState()
    files = [
        {"number": number, "name": file.name, "rows": file.rows, "digest": ""}
        for number, file in enumerate(manifest.files[::order])
    ]
    numbers = {file["name"]: file["number"] for file in files}
    state.apply({"kind": "start", "run": "run", "rows_per_file": 1, "files": files})
    rows = {
        str(numbers[name]): text_of(np.array(indices)) for name, indices in (done or {}).items()
    }
    commit = {"token": "t", "rows": rows, "counts": {}, "parts": []}
    state.apply({"kind": "commit", "commits": [commit], "groups": [], "published": []})
    return state


A, B = "k=7/a.parquet", "k=8/b.parquet"


@pytest.fixture
def begun(tmp_path):
    """A manifest of two files, and a function that returns its ledger with some finished rows."""
    write_manifest(tmp_path / "m" / A, ids(0, 100), row_group_size=10)
    write_manifest(tmp_path / "m" / B, ids(100, 5))
    manifest = open_manifest(str(tmp_path / "m"))

    def done(a=(), b=()):
        # The ledger has met the files in another order than the manifest lists them.
        return ledger_of(manifest, {A: list(a), B: list(b)}, order=-1)

    return manifest, done


def read_all(manifest, state):
    tables = [
        table
        for split in plan_splits(manifest, state)
        for table in read_split(split, manifest.schema, manifest.partitions)
    ]
    return pa.concat_tables(tables)


def test_all_rows_with_ordinals_and_partition_columns(begun):
    manifest, done = begun
    table = read_all(manifest, done())
    assert table.schema.equals(read_schema(manifest.schema))
    assert table["id"].to_pylist() == [f"i{number}" for number in range(105)]
    assert table["k"].to_pylist() == [7] * 100 + [8] * 5
    ordinals = [(row["file"], row["index"]) for row in table["row"].to_pylist()]
    assert ordinals == [(1, i) for i in range(100)] + [(0, i) for i in range(5)]
    assert table["error_code"].null_count == 105


def test_finished_rows_are_skipped_and_finished_files_not_opened(begun, tmp_path):
    manifest, done = begun
    state = done(a=[i for i in range(100) if i not in (0, 33, 99)], b=range(5))
    (tmp_path / "m" / B).unlink()
    table = read_all(manifest, state)
    assert table["id"].to_pylist() == ["i0", "i33", "i99"]
    assert [row["index"] for row in table["row"].to_pylist()] == [0, 33, 99]


def test_only_row_groups_with_work_are_read(begun, monkeypatch):
    manifest, done = begun
    monkeypatch.setattr(read, "_MIN_SPLIT_ROWS", 20)
    monkeypatch.setattr(read, "_FILE_OPEN_ROWS", 0)
    state = done(a=[*range(45), *range(60, 70)], b=[0])
    splits = plan_splits(manifest, state)
    assert [[g.position for s in split.slices for g in s.groups] for split in splits] == [
        [4, 5, 7],
        [8, 9],
        [0],
    ]
    assert [split.rows for split in splits] == [25, 20, 4]
    assert read_all(manifest, state)["id"].to_pylist() == [
        *(f"i{number}" for number in (*range(45, 60), *range(70, 100))),
        *(f"i{number}" for number in range(101, 105)),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_any_rows_of_any_row_groups(tmp_path, monkeypatch, seed):
    """All splits together have the unfinished rows once, in order, with the right index."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(read, "_MIN_SPLIT_ROWS", int(rng.integers(1, 400)))
    monkeypatch.setattr(read, "_FILE_OPEN_ROWS", int(rng.integers(0, 100)))
    monkeypatch.setattr(read, "_MASK_ROWS", 8 * int(rng.integers(1, 9)))
    monkeypatch.setattr(read, "_BATCH_ROWS", int(rng.integers(1, 50)))
    monkeypatch.setattr(read, "_STREAMED_BYTES", int(rng.choice([0, 1 << 30])))
    first, done, expected = 0, {}, []
    for number in range(6):
        rows = int(rng.choice([0, 1, 9, 64, 200]))
        name = f"{number}.parquet"
        write_manifest(
            tmp_path / name, ids(first, rows), row_group_size=int(rng.choice([7, 8, 33, 500]))
        )
        finished = rng.random(rows) < rng.choice([0.0, 0.5, 0.95, 1.0])
        done[name] = np.flatnonzero(finished)
        expected += [
            (f"i{first + index}", number, index) for index in np.flatnonzero(~finished).tolist()
        ]
        first += rows
    manifest = open_manifest(str(tmp_path))
    splits = plan_splits(manifest, ledger_of(manifest, done))
    tables = [list(read_split(split, manifest.schema, manifest.partitions)) for split in splits]
    assert [sum(map(len, each)) for each in tables] == [split.rows for split in splits]
    rows = pa.concat_tables([table for each in tables for table in each]).to_pylist()
    assert [(r["id"], r["row"]["file"], r["row"]["index"]) for r in rows] == expected


def test_large_splits_come_in_bounded_tables(begun, monkeypatch):
    manifest, done = begun
    monkeypatch.setattr(read, "_BATCH_ROWS", 16)
    split = plan_splits(manifest, done())[0]
    sizes = [t.num_rows for t in read_split(split, manifest.schema, manifest.partitions)]
    assert max(sizes) <= 16
    assert sum(sizes) == 105


def simulated(files, rows, groups):
    """A manifest of files that do not exist: planning must not open them."""
    listed = tuple(
        ManifestFile(name, resolve(f"/no/{name}"), (rows // groups,) * groups, {}, "", "digest")
        for name in (f"{number}.parquet" for number in range(files))
    )
    schema = check_manifest_schema(ids(0, 0).schema, "here")
    return Manifest("/no", listed, schema, pa.schema([]))


@pytest.mark.parametrize(("files", "rows", "groups"), [(3, 30, 1), (3000, 50, 1), (10, 2**18, 64)])
@pytest.mark.parametrize("share", [0.0, 0.9])
def test_the_number_of_tasks_is_bounded(monkeypatch, files, rows, groups, share):
    monkeypatch.setattr(read, "_MAX_SPLITS", 30)
    manifest = simulated(files, rows, groups)
    finished = np.flatnonzero(np.random.default_rng(0).random(rows) < share)
    state = ledger_of(manifest, {file.name: finished for file in manifest.files})
    splits = plan_splits(manifest, state)
    assert 1 <= len(splits) <= 31
    assert sum(split.rows for split in splits) == files * (rows - len(finished))
    if share == 0:
        assert all(group_slice.pending == b"" for split in splits for group_slice in split.slices)
    source = ManifestDatasource(manifest, state)
    assert source.tasks == len(source.get_read_tasks(1)) == len(splits)


def test_a_finished_manifest_has_no_splits(tmp_path):
    write_manifest(tmp_path / "empty.parquet", ids(0, 0))
    write_manifest(tmp_path / "done.parquet", ids(0, 3))
    manifest = open_manifest(str(tmp_path))
    assert plan_splits(manifest, ledger_of(manifest, {"done.parquet": [0, 1, 2]})) == []


def test_a_large_row_group_is_streamed(tmp_path, monkeypatch):
    write_manifest(tmp_path / "m.parquet", ids(0, 5000), row_group_size=5000)
    manifest = open_manifest(str(tmp_path))
    state = ledger_of(manifest, {"m.parquet": np.arange(1, 5000, 2)})
    plain = read_all(manifest, state)
    monkeypatch.setattr(read, "_STREAMED_BYTES", 0)
    monkeypatch.setattr(read, "_BUFFER_BYTES", 1024)
    assert read_all(manifest, state).equals(plain)
    assert plain["row"].combine_chunks().field("index").to_pylist() == list(range(0, 5000, 2))


@pytest.mark.parametrize(
    ("table", "options", "how"),
    [
        (ids(0, 99), {"row_group_size": 10}, "found 99 rows, expected 100"),
        (ids(0, 100), {"row_group_size": 20}, "its row groups have changed"),
        (ids(1, 100), {"row_group_size": 10}, "it was overwritten"),
    ],
)
def test_a_file_that_changed_since_the_plan_is_refused(begun, tmp_path, table, options, how):
    manifest, done = begun
    split = plan_splits(manifest, done())[0]
    write_manifest(tmp_path / "m" / A, table, **options)
    with pytest.raises(ManifestChangedError, match=f"a.parquet: .* changed .*: {how}$"):
        list(read_split(split, manifest.schema, manifest.partitions))
    (tmp_path / "m" / A).unlink()
    with pytest.raises(ManifestChangedError, match="it no longer exists"):
        list(read_split(split, manifest.schema, manifest.partitions))


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        ("footer", PermanentError, "a.parquet: the manifest's file cannot be read"),
        ("pages", JobError, "a.parquet: row group 0: column 'id': found data that cannot be read"),
    ],
)
def test_a_damaged_file_is_named(begun, tmp_path, damage, error, words):
    manifest, done = begun
    split = plan_splits(manifest, done())[0]
    path = tmp_path / "m" / A
    content = path.read_bytes()
    pages = b"PAR1" + b"\xff" * 500 + content[504:]
    path.write_bytes(content[:-100] if damage == "footer" else pages)
    slices = tuple(replace(piece, version="") for piece in split.slices)
    with pytest.raises(error, match=words):
        list(read_split(replace(split, slices=slices), manifest.schema, manifest.partitions))


@pytest.mark.parametrize("streamed", [False, True])
def test_checksums_of_pages_are_checked(tmp_path, monkeypatch, streamed):
    """A bit of a column that nobody looks at has turned, in a file whose writer wrote checksums."""
    if streamed:
        monkeypatch.setattr(read, "_STREAMED_BYTES", 1)
    values = pa.array(range(10**12, 10**12 + 100))
    table = ids(0, 100).append_column("mine", values)
    path = tmp_path / "m.parquet"
    options = {"compression": "none", "use_dictionary": False}
    pq.write_table(table, path, write_page_checksum=True, **options)
    manifest = open_manifest(str(path))
    [split] = plan_splits(manifest, ledger_of(manifest))
    assert sum(map(len, read_split(split, manifest.schema, manifest.partitions))) == 100
    content = bytearray(path.read_bytes())
    content[content.index((10**12 + 50).to_bytes(8, "little"))] ^= 1
    path.write_bytes(content)
    slices = tuple(replace(piece, version="") for piece in split.slices)
    words = "m.parquet: row group 0: column 'mine': found data .* CRC checksum"
    with pytest.raises(JobError, match=words):
        list(read_split(replace(split, slices=slices), manifest.schema, manifest.partitions))


def test_another_hard_link_to_a_file_is_not_a_change(begun, tmp_path):
    manifest, done = begun
    (tmp_path / "copy").hardlink_to(tmp_path / "m" / A)
    assert len(read_all(manifest, done())) == 105


def test_s3(s3, tmp_path):
    """The version of an S3 object is the same from a listing and from opening it."""
    import fsspec

    write_manifest(tmp_path / "f.parquet", ids(0, 50), row_group_size=10)
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.put_file(str(tmp_path / "f.parquet"), f"{s3}/read/f.parquet")
    manifest = open_manifest(f"{s3}/read")
    state = ledger_of(manifest, {"f.parquet": range(10)})
    assert read_all(manifest, state)["id"].to_pylist() == [f"i{i}" for i in range(10, 50)]
    write_manifest(tmp_path / "f.parquet", ids(1, 50), row_group_size=10)
    fs.put_file(str(tmp_path / "f.parquet"), f"{s3}/read/f.parquet")
    with pytest.raises(ManifestChangedError, match="it was overwritten"):
        read_all(manifest, state)


def test_the_columns_of_files_may_differ_in_order(tmp_path):
    write_manifest(tmp_path / "a.parquet", ids(0, 2))
    write_manifest(tmp_path / "b.parquet", ids(2, 2).select(["n", "uri", "id"]))
    manifest = open_manifest(str(tmp_path))
    table = read_all(manifest, ledger_of(manifest))
    assert table["id"].to_pylist() == ["i0", "i1", "i2", "i3"]
    assert table["n"].to_pylist() == [0, 1, 0, 1]
