"""A bucket of many objects is listed over HTTP, by several requests at once."""

import pytest
import s3fs

from mediamill.pipeline.sources.changed_archives import check_archives
from tests.pipeline.sources.drawn import made, tar_bytes
from tests.servers.drawn_s3 import DrawnKeys, serving


@pytest.fixture(autouse=True)
def no_cached_file_systems():
    """They are cached by their arguments, without the environment that names the server."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def use(server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def test_many_keys_that_need_encoding(tmp_path, monkeypatch):
    keys = DrawnKeys(5000, per_folder=1500)
    with serving(keys, latency_s=0.05) as server:
        use(server, monkeypatch)
        found, left_out = made("s3://drawn", tmp_path / "m")
        assert server.most_in_flight > 1
    assert [row["id"] for row in found] == [keys[number] for number in range(5000)]
    assert found[-1]["uri"] == f"s3://drawn/{keys[4999]}"
    assert not left_out


def test_of_a_large_shard_the_headers_are_read(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    members = [(f"{n}.jpg", bytes(300_000)) for n in range(20)]
    (tmp_path / "b" / "a.tar").write_bytes(tar_bytes(members))
    with serving(["a.tar"], folder=tmp_path / "b") as server:
        use(server, monkeypatch)
        found, _ = made("s3://drawn/a.tar", tmp_path / "m")
        assert len(found) == 20
        assert server.sent < 20 * 300_000 * 0.1
        check_archives(str(tmp_path / "m"))
