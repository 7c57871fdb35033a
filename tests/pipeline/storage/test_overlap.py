"""Whether an output and what is read lie in one another, however they are spelled."""

import pytest

from mediamill.pipeline.storage.overlap import overlaps


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "data" / "day=1").mkdir(parents=True)
    (tmp_path / "data" / "m.parquet").touch()
    (tmp_path / "data[1]").mkdir()
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "deep").symlink_to("data/day=1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("data", "data"),
        ("data/out", "data"),
        (".", "data"),
        ("data", "data/m.parquet"),
        ("data/m.parquet", "data/m.parquet"),
        ("link", "data"),
        ("link/out", "data"),
        ("data/out", "link"),
        ("deep/out", "data"),
        ("data", "deep"),
        ("other/../data/out", "data"),
        ("data/./out/", "data/"),
        ("data//out", "data"),
        ("file:///{here}/data/out", "data"),
        ("data/out", "data/**"),
        ("data/a/b/out", "data/**/*.parquet"),
        ("data/out", "data/*/*.parquet"),
        ("data/out.parquet", "data/*.parquet"),
        ("data/out", "data/*"),
        ("link/out", "data/*/*.parquet"),
        ("data/out", "link/*/*.parquet"),
        ("data/day=2/out", "data/day=[0-9]"),
        ("data[1]/out", "data[1]"),
        ("data", "data/*.parquet"),
        ("s3://bucket/a/out", "s3://bucket/a"),
        ("s3://bucket/a", "s3a://bucket/a/m.parquet"),
        ("s3://bucket/a/x/out", "s3://bucket/a/*"),
        ("memory://a/out", "memory:///a"),
    ],
)
def test_these_overlap(here, folder, source):
    assert overlaps(folder.format(here=str(here).lstrip("/")), source)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("out", "data"),
        ("data2", "data"),
        ("data/out", "data/m.parquet"),
        ("data/out", "data/*.parquet"),
        ("data/out", "data/day=*/*.parquet"),
        ("data1/out", "data[1]"),
        ("s3://bucket/out", "s3://bucket/a"),
        ("s3://bucket/a2", "s3://bucket/a"),
        ("s3://other/a", "s3://bucket/a"),
        ("memory://a", "s3://a"),
        ("data", "s3://data"),
        ("out", "none/m.parquet"),
    ],
)
def test_these_are_apart(here, folder, source):
    assert not overlaps(folder, source)
