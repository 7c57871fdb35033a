"""Lance data sets and Iceberg tables are sources, where their libraries are installed."""

import pyarrow as pa
import pytest

from mediamill.pipeline.sources.detect import is_manifest
from mediamill.schemas.errors import JobError
from tests.pipeline.sources.drawn import build, made

ROWS = pa.table(
    {
        "key": pa.array([f"k{n}" for n in range(5)]),
        "url": pa.array(["https://h/0.jpg", None, *(f"https://h/{n}.jpg" for n in range(2, 5))]),
        "score": pa.array([0.5 * n for n in range(5)]),
    }
)
KEYS = ["k0", "k2", "k3", "k4"]
MORE = pa.table({"key": ["k9"], "url": ["https://h/9.jpg"], "score": [9.0]})


def test_lance(tmp_path):
    lance = pytest.importorskip("lance")
    folder = str(tmp_path / "t.lance")
    lance.write_dataset(ROWS, folder)
    assert not is_manifest(folder)
    found, left_out = made(folder, tmp_path / "m", id_column="key")
    assert [row["id"] for row in found] == KEYS
    assert found[1] == {"id": "k2", "uri": "https://h/2.jpg", "score": 1.0}
    assert left_out == {"a row without an address": 1}
    lance.write_dataset(MORE, folder, mode="append")
    summary = build(folder, tmp_path / "m", id_column="key")
    assert (summary.rows, summary.new, summary.gone) == (5, 1, 0)


@pytest.fixture
def iceberg(tmp_path):
    pytest.importorskip("pyiceberg")
    pytest.importorskip("sqlalchemy")
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog(
        "c", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/warehouse"
    )
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", schema=ROWS.schema)
    table.append(ROWS)
    return table


def test_iceberg(tmp_path, iceberg):
    folder = iceberg.location().removeprefix("file://")
    assert not is_manifest(folder)
    for number, source in enumerate((folder, iceberg.metadata_location)):
        found, left_out = made(source, tmp_path / f"m{number}", id_column="key")
        assert sorted(row["id"] for row in found) == KEYS
        assert left_out == {"a row without an address": 1}
    iceberg.append(MORE)
    summary = build(folder, tmp_path / "m0", id_column="key")
    assert (summary.rows, summary.new, summary.gone) == (5, 1, 0)


def test_an_iceberg_table_of_a_catalog(tmp_path, iceberg, monkeypatch):
    monkeypatch.setenv("PYICEBERG_CATALOG__C__URI", f"sqlite:///{tmp_path}/catalog.db")
    from pyiceberg import catalog
    from pyiceberg.utils.config import Config

    monkeypatch.setattr(catalog, "_ENV_CONFIG", Config())  # it was read when it was imported
    found, _ = made("iceberg://c/n.t", tmp_path / "m", id_column="key")
    assert sorted(row["id"] for row in found) == KEYS
    with pytest.raises(JobError, match="the table cannot be read"):
        build("iceberg://c/n.none", tmp_path / "n")
