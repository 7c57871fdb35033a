"""Ids that occur twice are found and named, whatever the manifest's size."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline import ids
from pipeline.manifest import open_manifest
from schemas.errors import JobError
from tests.pipeline.world import write_manifest


def manifest_of(folder, *files):
    for number, values in enumerate(files):
        table = pa.table({"id": values, "uri": ["x"] * len(values)})
        write_manifest(folder / f"{number}.parquet", table, row_group_size=3)
    return open_manifest(str(folder))


def test_duplicates_are_named_with_their_places(tmp_path):
    manifest = manifest_of(tmp_path, ["a", "b", "c", "d"], ["e", "b", "a", "f", "b"])
    with pytest.raises(JobError) as error:
        ids.check_ids(manifest, {})
    assert "found 2 ids that occur more than once" in str(error.value)
    assert "'b' in 0.parquet row 1, 1.parquet row 1, 1.parquet row 4" in str(error.value)
    assert "'a' in 0.parquet row 0, 1.parquet row 2" in str(error.value)


def test_integers_too(tmp_path):
    manifest = manifest_of(tmp_path, pa.array([5, 7], pa.int64()), pa.array([7, 8], pa.int64()))
    with pytest.raises(JobError, match=r"7 in 0.parquet row 1, 1.parquet row 0"):
        ids.check_ids(manifest, {})


def test_null_ids_are_named(tmp_path):
    with pytest.raises(JobError, match=r"0.parquet: row 4: found no id \(null\)"):
        ids.check_ids(manifest_of(tmp_path, ["a", "b", "c", "d", None]), {})


def test_many_ids_in_buckets_give_the_same_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(ids, "_HASHES_IN_MEMORY", 100)  # 20 buckets, on the disk
    names = [f"id-{number}" for number in range(2000)]
    assert ids.check_ids(manifest_of(tmp_path / "fine", names), {})
    names[1234] = names[17]
    with pytest.raises(JobError, match=r"'id-17' in 0.parquet row 17, 0.parquet row 1234"):
        ids.check_ids(manifest_of(tmp_path / "twice", names), {})


def test_equal_hashes_are_not_equal_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(ids, "_hash", lambda values: np.zeros(len(values), np.uint64))
    assert ids.check_ids(manifest_of(tmp_path / "fine", ["a", "b", "c"]), {})
    with pytest.raises(JobError, match="found 1 ids"):
        ids.check_ids(manifest_of(tmp_path / "twice", ["a", "b", "a"]), {})


def test_a_manifest_of_one_id_does_not_fill_the_memory(tmp_path):
    with pytest.raises(JobError) as error:
        ids.check_ids(manifest_of(tmp_path, ["a"] * 5000), {})
    assert len(str(error.value)) < 500


def test_the_prefix_of_a_grown_file_has_the_digest_it_had(tmp_path):
    small = ids.check_ids(manifest_of(tmp_path / "a", ["x", "y", "z", "w"]), {})
    grown = ids.check_ids(manifest_of(tmp_path / "b", ["x", "y", "z", "w", "v"]), {"0.parquet": 4})
    other = ids.check_ids(manifest_of(tmp_path / "c", ["y", "x", "z", "w", "v"]), {"0.parquet": 4})
    assert grown["0.parquet"].prefix == small["0.parquet"].whole
    assert grown["0.parquet"].whole != small["0.parquet"].whole
    assert other["0.parquet"].prefix != small["0.parquet"].whole
    cut = ids.check_ids(manifest_of(tmp_path / "d", ["x"]), {"0.parquet": 4})
    assert cut["0.parquet"].prefix is None
    same = ids.check_ids(manifest_of(tmp_path / "e", ["x", "y", "z", "w"]), {"0.parquet": 4})
    assert same["0.parquet"].prefix == same["0.parquet"].whole
