"""Media inside the files of a manifest that differ, and files without rows."""

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.state import LedgerState
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.manifest.resharding import check_files
from mediamill.pipeline.storage import storage
from tests.pipeline.stages.test_read import ledger_of, read_all

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read(folder, files, header=None):
    folder.mkdir(exist_ok=True)
    for number, columns in enumerate(files):
        table = pa.table({"id": [str(number)], **columns})
        pq.write_table(table, folder / f"{number}.parquet")
    manifest = open_manifest(str(folder), header=header)
    rows = read_all(manifest, ledger_of(manifest))
    assert rows["id"].to_pylist() == [str(number) for number in range(len(files))]
    return manifest, rows


def test_media_with_bytes_in_some_files_only(tmp_path):
    inside = pa.array([[{"bytes": b"a", "uri": None, "type": "image"}]])
    outside = pa.array([[{"uri": "u", "type": "image"}]])
    null = pa.nulls(1)
    for name, files, expected in (
        ("one", [inside], [[b"a"]]),
        ("null", [inside, outside, null], [[b"a"], [None], None]),
        ("later", [outside, inside], [[None], [b"a"]]),
    ):
        _, rows = read(tmp_path / name, [{"media": media} for media in files])
        assert rows["media_bytes"].to_pylist() == expected
        assert rows["error_code"].null_count == len(files)


def test_pictures_with_a_file_that_has_none(tmp_path):
    pictures = pa.array([{"bytes": b"a", "path": "x"}], HUB)
    for files in ([pictures, pa.nulls(1)], [pa.nulls(1), pictures]):
        folder = tmp_path / str(files[0].type)
        manifest, rows = read(folder, [{"image": image} for image in files])
        assert sorted(rows["media_bytes"].to_pylist(), key=str) == [[None], [b"a"]]
    # The only file that is read again has no type.
    files = [{"image": pa.nulls(1)}]
    manifest, rows = read(tmp_path / "grown", files, manifest.header())
    assert (manifest.schema.media_column, rows["media_bytes"].to_pylist()) == ("image", [[None]])


def test_the_columns_of_files_without_rows_do_not_count(tmp_path):
    pq.write_table(pa.table({"id": ["1"], "uri": ["u"], "c": ["x"]}), tmp_path / "b.parquet")
    numbers = pa.array([], pa.int64())
    for name, columns in {
        "a": {"id": pa.nulls(0), "uri": pa.nulls(0), "c": numbers},
        "c": {},
        "d": {"id": pa.array([], pa.float64()), "status": numbers},
    }.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    manifest = open_manifest(str(tmp_path))
    assert (len(manifest.files), manifest.rows) == (4, 1)
    assert [field.name for field in manifest.schema.user] == ["c"]
    checked = check_files(manifest, LedgerState(), storage.resolve(str(tmp_path / "out")))
    assert len(checked.files) == 4
    assert read_all(manifest, ledger_of(manifest))["c"].to_pylist() == ["x"]
