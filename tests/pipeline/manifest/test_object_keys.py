"""Manifests and outputs in an object store, whose keys may be any text."""

import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError


@pytest.fixture(scope="module")
def put(s3):
    import botocore.session

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    client = botocore.session.get_session().create_client("s3", endpoint_url=endpoint)

    def put(key, row_id=""):
        """Writes a manifest of one row; an object without bytes if the row has no id."""
        file = io.BytesIO()
        pq.write_table(pa.table({"id": [row_id], "uri": ["a.png"]}), file)
        client.put_object(Bucket="mill", Key=key, Body=file.getvalue() if row_id else b"")

    return put


def ids(url):
    """The ids of each file by its name, opened as a read task does it."""
    found = {}
    for file in open_manifest(url).files:
        place = storage.resolve(file.place.url)
        with place.fs.open(place.path, "rb") as source:
            found[file.name] = pq.ParquetFile(source).read()["id"].to_pylist()
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("a::b.parquet", "q?.parquet", "h#x.parquet", "st*r.parquet", "[x].parquet", "+.parquet"),
        *("p%20b.parquet", "a b.parquet", "é.parquet", "e\u0301.parquet", "t\tx.parquet", " .pq"),
        *("a//b.parquet", "/lead.parquet", "//lead.parquet", "s3:/x.parquet", "day=1//c.parquet"),
        *("\U0001f600.parquet", "~.parquet", "A.PARQUET", "x" * 900 + ".parquet"),
    ],
    ids=lambda name: f"{name[:20]!r}",
)
def test_manifest_files_of_any_key(put, name):
    folder = f"keys/{abs(hash(name))}"
    put(f"{folder}/{name}", name)
    assert ids(f"s3://mill/{folder}") == ids(f"S3://mill/{folder}/") == {name: [name]}
    base = name.rpartition("/")[2]
    assert ids(f"s3://mill/{folder}/{name}") == {base: [name]}
    assert ids(f"s3a://mill/{folder}/**") == {name: [name]}


def test_folder_markers_are_no_files(put):
    """Consoles and Hadoop put an object without bytes where a folder is."""
    for key in ("m/", "m/x.parquet/", "m/only.parquet/", "m/sub/", "m/z.parquet//"):
        put(key)
    put("m/x.parquet", "x")
    put("m/sub/y.parquet", "y")
    both = {"x.parquet": ["x"], "sub/y.parquet": ["y"]}
    assert ids("s3://mill/m") == ids("s3://mill/m/**/*.parquet") == both
    for url in ("m/x.parquet", "m/x.parquet/", "m/*.parquet", "m/[x].parquet", "m/x*"):
        assert ids(f"s3://mill/{url}") == {"x.parquet": ["x"]}
    put("spark.parquet/")
    put("spark.parquet/part-0.parquet", "p")
    assert ids("s3://mill/spark.parquet") == {"part-0.parquet": ["p"]}
    with pytest.raises(JobError, match="found 0 files"):
        ids("s3://mill/m/only.parquet")


def test_patterns_with_two_slashes(put):
    put("g//1.parquet", "below an empty name")
    put("g/0.parquet", "below g")
    assert ids("s3://mill/g//*.parquet") == {"1.parquet": ["below an empty name"]}
    assert ids("s3://mill/g/*.parquet") == {"0.parquet": ["below g"]}


def test_a_chain_of_urls_is_refused_and_a_key_is_none(put):
    put("g::1/1.parquet", "1")
    assert ids("s3://mill/g::1") == {"1.parquet": ["1"]}
    assert ids("s3://mill/g::*/*.parquet") == {"g::1/1.parquet": ["1"]}
    with pytest.raises(JobError, match="chain of URLs"):
        open_manifest("simplecache::s3://mill/g::1")


@pytest.mark.parametrize(
    "name", ["out//a", "out::b", "o?u#t", "o ut", "o%20t", "/out", "é", "o*[t]"]
)
def test_output_folders_of_any_key(s3, name):
    folder = storage.resolve(f"{s3}/{name}")
    part = folder / "x=1" / "part-0.parquet"
    storage.put(part, b"part")
    assert storage.put_if_absent(folder / "_log" / "1", b"log")
    assert not storage.put_if_absent(folder / "_log" / "1", b"again")
    storage.move(part, folder / "x=2" / "p::1.parquet")
    assert storage.list_files(folder) == ["_log/1", "x=2/p::1.parquet"]
    assert storage.read(storage.resolve(f"{s3}/{name}/x=2/p::1.parquet")) == b"part"
    for file in storage.list_files(folder):
        storage.remove(folder / file)
    assert storage.list_files(folder) == []
