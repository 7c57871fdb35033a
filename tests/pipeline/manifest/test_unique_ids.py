"""Duplicate ids are found and named, for manifests of all sizes that grow run by run; unchanged
files are not read again.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.manifest import id_index, unique_ids
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.world import write_manifest


def write(path, values):
    table = pa.table({"id": values, "uri": ["x"] * len(values)})
    write_manifest(path, table, row_group_size=3)


def manifest_of(folder, *files):
    for number, values in enumerate(files):
        write(folder / f"{number}.parquet", values)
    return open_manifest(str(folder))


@pytest.fixture
def index(tmp_path):
    return storage.resolve(str(tmp_path / "index"))


class Output:
    """Checks the ids of a manifest, run by run. reads: names of the files that were read."""

    def __init__(self, folder, index, monkeypatch):
        self.folder, self.index, self.known, self.reads = folder, index, (), []
        batches = unique_ids.id_batches

        def noted(file):
            self.reads.append(file.name)
            return batches(file)

        monkeypatch.setattr(unique_ids, "id_batches", noted)

    def run(self, save=True):
        self.reads.clear()
        manifest = open_manifest(str(self.folder), self.known)
        files, new = unique_ids.check_ids(manifest, self.known, self.index)
        if save:
            new.save()
            self.known = files
        return self.reads


@pytest.fixture
def output(tmp_path, index, monkeypatch):
    return Output(tmp_path / "manifest", index, monkeypatch)


def test_duplicates_are_named_with_their_places(tmp_path, index):
    manifest = manifest_of(tmp_path, ["a", "b", "c", "d"], ["e", "b", "a", "f", "b"])
    with pytest.raises(JobError) as error:
        unique_ids.check_ids(manifest, (), index)
    assert "found 2 ids that occur more than once" in str(error.value)
    assert "'b' in 0.parquet row 1, 1.parquet row 1, 1.parquet row 4" in str(error.value)
    assert "'a' in 0.parquet row 0, 1.parquet row 2" in str(error.value)


def test_duplicate_integers_are_named(tmp_path, index):
    manifest = manifest_of(tmp_path, pa.array([5, 7], pa.int64()), pa.array([7, 8], pa.int64()))
    with pytest.raises(JobError, match=r"7 in 0.parquet row 1, 1.parquet row 0"):
        unique_ids.check_ids(manifest, (), index)


def test_null_ids_are_named(tmp_path, index):
    with pytest.raises(JobError, match=r"0.parquet: row 4: found no id \(null\)"):
        unique_ids.check_ids(manifest_of(tmp_path, ["a", "b", "c", "d", None]), (), index)


def test_many_ids_in_buckets_give_the_same_answer(tmp_path, index, monkeypatch):
    monkeypatch.setattr(id_index, "_SHARD_HASHES", 100)  # 32 buckets, on the disk
    names = [f"id-{number}" for number in range(2000)]
    assert unique_ids.check_ids(manifest_of(tmp_path / "fine", names), (), index)
    names[1234] = names[17]
    with pytest.raises(JobError, match=r"'id-17' in 0.parquet row 17, 0.parquet row 1234"):
        unique_ids.check_ids(manifest_of(tmp_path / "twice", names), (), index)


def test_equal_hashes_are_not_equal_ids(tmp_path, index, monkeypatch):
    monkeypatch.setattr(unique_ids, "hash_ids", lambda values: np.zeros(len(values), np.uint64))
    assert unique_ids.check_ids(manifest_of(tmp_path / "fine", ["a", "b", "c"]), (), index)
    with pytest.raises(JobError, match="found 1 ids"):
        unique_ids.check_ids(manifest_of(tmp_path / "twice", ["a", "b", "a"]), (), index)


def test_a_manifest_of_one_id_does_not_fill_the_memory(tmp_path, index):
    with pytest.raises(JobError) as error:
        unique_ids.check_ids(manifest_of(tmp_path, ["a"] * 5000), (), index)
    assert len(str(error.value)) < 500


def test_the_digest_of_a_file_that_grows(output):
    write(output.folder / "0.parquet", ["x", "y", "z", "w"])
    output.run()
    small = output.known[0].digest
    assert output.run() == []
    write(output.folder / "0.parquet", ["x", "y", "z", "w"])  # at another time
    assert output.run() == ["0.parquet"]
    assert output.known[0].digest == small
    write(output.folder / "0.parquet", ["x", "y", "z", "w", "v"])
    assert output.run() == ["0.parquet"]
    assert output.known[0].digest != small
    assert output.run() == []


def test_new_files_are_compared_with_old_ones_that_are_not_read(output):
    write(output.folder / "a.parquet", ["a", "b", "c"])
    write(output.folder / "b.parquet", ["d", "e"])
    assert sorted(output.run()) == ["a.parquet", "b.parquet"]
    write(output.folder / "c.parquet", ["f", "g"])
    assert output.run() == ["c.parquet"]
    write(output.folder / "d.parquet", ["h", "d"])
    with pytest.raises(JobError, match=r"'d' in b.parquet row 0, d.parquet row 1"):
        output.run()
    write(output.folder / "d.parquet", ["h"])
    assert output.run() == ["d.parquet"]
    write(output.folder / "b.parquet", ["d", "e", "g"])
    with pytest.raises(JobError, match=r"'g' in b.parquet row 2, c.parquet row 1"):
        output.run()


def test_a_check_that_is_not_saved_changes_nothing(output):
    write(output.folder / "a.parquet", ["a", "b"])
    output.run(save=False)
    assert storage.list_files(output.index) == []
    assert output.run() == ["a.parquet"]


@pytest.mark.parametrize("seed", range(8))
def test_any_history_finds_what_reading_everything_finds(output, monkeypatch, seed):
    """Files are added and grow; runs die between writing the index and the ledger; objects of the
    index are lost or damaged; some ids are duplicates. The result is always that of a dictionary of
    all ids.
    """
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(id_index, "_SHARD_HASHES", int(rng.integers(2, 40)))
    files, fresh, refused = {}, 0, 0
    for _step in range(14):
        before = {name: list(values) for name, values in files.items()}
        for _ in range(int(rng.integers(0, 3))):
            name = f"{rng.integers(0, 8)}.parquet"
            count = int(rng.integers(0, 30))
            files[name] = [*files.get(name, []), *(f"id-{fresh + i}" for i in range(count))]
            fresh += count
        changed = [name for name in files if files[name] != before.get(name)]
        old = [value for values in before.values() for value in values]
        twice = bool(changed and old and rng.random() < 0.3)
        if twice:
            files[changed[0]].append(old[int(rng.integers(len(old)))])
        for name in changed:
            table = pa.table({"id": pa.array(files[name], pa.string())})
            write_manifest(
                output.folder / name, table.append_column("uri", table["id"]), row_group_size=5
            )
        if not files:
            continue
        objects = storage.list_files(output.index)
        if objects and rng.random() < 0.3:
            lost = output.index / objects[int(rng.integers(len(objects)))]
            data = bytearray(storage.read(lost))
            if rng.random() < 0.5 and data:
                data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
                storage.put(lost, bytes(data))
            else:
                storage.remove(lost)
        if twice:
            with pytest.raises(JobError, match="found 1 ids that occur more than once"):
                output.run()
            refused += 1
            files = before
            for name in changed:
                if name in before:
                    table = pa.table({"id": pa.array(before[name], pa.string())})
                    write_manifest(output.folder / name, table.append_column("uri", table["id"]))
                else:
                    (output.folder / name).unlink()
        elif rng.random() < 0.2:
            known = output.known
            output.run()  # writes the index, and dies before the ledger is written
            output.known = known
        else:
            output.run()
            assert {file.name: file.rows for file in output.known} == {
                name: len(values) for name, values in files.items()
            }
    held = [segment.rows for segment in id_index.load_segments(output.index)]
    assert len(held) <= 12


def test_compaction_leaves_few_segments(output):
    for number in range(20):
        write(output.folder / f"{number:02}.parquet", [f"{number}-{i}" for i in range(4)])
        assert output.run() == [f"{number:02}.parquet"]
    rows = sorted(segment.rows for segment in id_index.load_segments(output.index))
    assert sum(rows) == 80
    assert len(rows) <= 5
    assert len(storage.list_files(output.index)) == 2 * len(rows)


def test_a_lost_index_is_rebuilt_when_it_is_needed(output):
    for name in "abc":
        write(output.folder / f"{name}.parquet", [f"{name}{i}" for i in range(10)])
    output.run()
    for name in storage.list_files(output.index):
        storage.remove(output.index / name)
    assert output.run() == []  # nothing is new: nothing is to be compared
    write(output.folder / "d.parquet", ["d0"])
    assert sorted(output.run()) == ["a.parquet", "b.parquet", "c.parquet", "d.parquet"]
    write(output.folder / "e.parquet", ["e0", "b3"])
    with pytest.raises(JobError, match=r"'b3' in b.parquet row 3, e.parquet row 1"):
        output.run()


def test_s3(s3, tmp_path, monkeypatch):
    """Shards in an object store; listings show which files have not changed."""
    import fsspec

    fs = fsspec.filesystem("s3", use_listings_cache=False)
    output = Output(f"{s3}/ids/manifest", storage.resolve(f"{s3}/ids/index"), monkeypatch)
    monkeypatch.setattr(id_index, "_SHARD_HASHES", 10)

    def put(name, values):
        write(tmp_path / name, values)
        fs.put_file(str(tmp_path / name), f"{output.folder}/{name}")

    put("a.parquet", [f"a{i}" for i in range(50)])
    assert output.run() == ["a.parquet"]
    put("a.parquet", [f"a{i}" for i in range(50)])  # the same bytes: the same ETag
    put("b.parquet", ["b"])
    assert output.run() == ["b.parquet"]
    put("c.parquet", ["a7"])
    with pytest.raises(JobError, match=r"'a7' in a.parquet row 7, c.parquet row 0"):
        output.run()


def test_a_large_row_group_is_not_read_whole(tmp_path, index):
    """The id column of one row group is larger than the memory that the check takes."""
    rows = 300_000
    names = pa.array([f"{number:0100}" for number in range(rows)])
    table = pa.table({"id": names, "uri": names})
    pq.write_table(
        table, tmp_path / "m.parquet", row_group_size=rows, compression="none", use_dictionary=False
    )
    del table, names
    manifest = open_manifest(str(tmp_path / "m.parquet"))
    before = pa.total_allocated_bytes()
    peak = 0
    for _, batch in unique_ids.id_batches(manifest.files[0]):
        peak = max(peak, pa.total_allocated_bytes() - before)
        assert len(batch) <= unique_ids._BATCH_ROWS
    assert peak < 25e6  # the column has 31 MB, its batches 7
