"""Lance datasets and Iceberg tables: new rows are appended, and a shard of a killed export once."""

import pytest

from mediamill.pipeline.export.export import ExportOptions, export
from mediamill.pipeline.export.state import StateFolder
from tests.pipeline.export.world import add_run, row


class Killed(BaseException):
    """The process is gone."""


def exported_twice_and_killed(tmp_path, monkeypatch, target, to):
    """Kills an export after its second append, gives it again, and once more with new rows."""
    output = add_run(tmp_path / "out", [row(number) for number in range(10)])
    options = ExportOptions(output, target, to, columns=("id", "text"), rows_per_file=3)
    save, saved = StateFolder.save, []

    def dying(self, state, units, files):
        if len(saved) == 1:
            raise Killed
        saved.append(1)
        save(self, state, units, files)

    with monkeypatch.context() as patch:
        patch.setattr(StateFolder, "save", dying)
        with pytest.raises(Killed):
            export(options)
    assert export(options).exported == 10
    add_run(output, [row(number) for number in range(10, 13)], 10)
    assert export(options).new == 3


WANTED = [f"row-{number:04}" for number in range(13)]


def test_lance(tmp_path, monkeypatch):
    lance = pytest.importorskip("lance")
    target = str(tmp_path / "rows.lance")
    exported_twice_and_killed(tmp_path, monkeypatch, target, "lance")
    rows = lance.dataset(target).to_table()
    assert rows.column_names == ["id", "text"]
    assert sorted(rows["id"].to_pylist()) == WANTED


def test_iceberg(tmp_path, monkeypatch):
    catalog = pytest.importorskip("pyiceberg.catalog")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("PYICEBERG_CATALOG__TEST__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__TEST__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__TEST__WAREHOUSE", f"file://{tmp_path}/warehouse")
    exported_twice_and_killed(tmp_path, monkeypatch, "test/names.rows", "iceberg")
    rows = catalog.load_catalog("test").load_table("names.rows").scan().to_arrow()
    assert sorted(rows["id"].to_pylist()) == WANTED
