"""The files of a manifest, and the columns of their hive paths."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.schemas.errors import JobError
from tests.pipeline.world import write_manifest

ROWS = pa.table({"id": ["a", "b", "c"], "uri": ["x", "y", "z"]})


def test_a_file_a_folder_and_a_glob(tmp_path):
    write_manifest(tmp_path / "m" / "b.parquet", ROWS)
    write_manifest(tmp_path / "m" / "a.parquet", ROWS, row_group_size=2)
    write_manifest(tmp_path / "m" / "_hidden" / "c.parquet", ROWS)
    write_manifest(tmp_path / "m" / ".d.parquet", ROWS)
    (tmp_path / "m" / "README.txt").write_text("no manifest")
    folder = open_manifest(str(tmp_path / "m"))
    assert [file.name for file in folder.files] == ["a.parquet", "b.parquet"]
    assert [file.row_groups for file in folder.files] == [(2, 1), (3,)]
    assert folder.rows == 6
    assert open_manifest(f"file://{tmp_path}/m/b.parquet").files[0].name == "b.parquet"
    manifest = open_manifest(str(tmp_path / "*" / "[a]*.parquet"))
    assert [file.name for file in manifest.files] == ["m/a.parquet"]


def test_hive_folders_become_columns(tmp_path):
    for folder in ("date=2024-01-01/part=7", "date=__HIVE_DEFAULT_PARTITION__/part=12"):
        write_manifest(tmp_path / folder / "f.parquet", ROWS)
    manifest = open_manifest(str(tmp_path))
    assert manifest.schema.user == (pa.field("date", pa.string()), pa.field("part", pa.int64()))
    assert [dict(file.partitions) for file in manifest.files] == [
        {"date": "2024-01-01", "part": 7},
        {"date": None, "part": 12},
    ]


def test_numbers_with_zeros_stay_text_and_escapes_are_undone(tmp_path):
    for folder in ("month=01/name=a%2Fb", "month=12/name=c"):
        write_manifest(tmp_path / folder / "f.parquet", ROWS)
    values = [dict(file.partitions) for file in open_manifest(str(tmp_path)).files]
    assert values == [{"month": "01", "name": "a/b"}, {"month": "12", "name": "c"}]


def test_a_column_of_the_file_takes_precedence_over_its_path(tmp_path):
    table = ROWS.append_column("kind", [["x", "y", "z"]])
    write_manifest(tmp_path / "kind=q" / "f.parquet", table)
    manifest = open_manifest(str(tmp_path))
    assert manifest.schema.user == (pa.field("kind", pa.string()),)
    assert dict(manifest.files[0].partitions) == {}


def test_s3(s3, tmp_path):
    import fsspec

    write_manifest(tmp_path / "f.parquet", ROWS)
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.put_file(str(tmp_path / "f.parquet"), f"{s3}/manifests/day=1/f.parquet")
    for url in ("manifests", "manifests/day=1/f.parquet", "manifests/*/*.parquet"):
        manifest = open_manifest(f"{s3}/{url}")
        assert manifest.rows == 3
        assert storage_path(manifest) == f"{s3}/manifests/day=1/f.parquet"


def storage_path(manifest):
    return manifest.files[0].place.url


def test_what_is_not_a_manifest_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no footer")
    write_manifest(tmp_path / "mixed" / "a.parquet", ROWS)
    write_manifest(tmp_path / "mixed" / "b.parquet", pa.table({"id": [1], "uri": ["x"]}))
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "no_uri.parquet")
    for name, words in {
        "missing": "no such file or folder",
        "empty": "found 0 files and none of them ends in .parquet",
        "bad.parquet": r"bad.parquet: found no readable Parquet file",
        "mixed": r"b.parquet: column 'id' is int64, expected string as in .*a.parquet",
        "no_uri.parquet": r"no_uri.parquet: no column 'uri'",
    }.items():
        with pytest.raises(JobError, match=words):
            open_manifest(str(tmp_path / name))
