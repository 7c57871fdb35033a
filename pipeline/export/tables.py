"""Lance and Iceberg tables: each shard is one append, which the table records as a version.

A killed export may have appended a shard that its state does not know. The table then has more rows
than the state says, and goes back to the version that has as many.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.export.formats import ExportContext
from mediamill.pipeline.export.parquet import ParquetShard
from mediamill.schemas.errors import JobError

_PROPERTY = "mediamill.export"


class _TableShard:
    """Rows that are gathered in a local file, and appended at the end."""

    def __init__(self, context: ExportContext, number: int, scratch: Path) -> None:
        self._context = context
        self._rows = ParquetShard(context, number, scratch)

    @property
    def rows(self) -> int:
        return self._rows.rows

    @property
    def size(self) -> int:
        return self._rows.size

    @property
    def left_out(self) -> Counter[str]:
        return self._rows.left_out

    def add(self, table: pa.Table) -> None:
        self._rows.add(table)

    def _gathered(self) -> Path:
        [(_, path)] = self._rows.close()
        return path


class LanceShard(_TableShard):
    """An append to the Lance dataset at the target."""

    def close(self) -> list[tuple[str, Path]]:
        lance = _import("lance", "pylance")
        uri, before = self._context.target.url, self._context.exported
        with pq.ParquetFile(self._gathered()) as file:
            batches = pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches(8192))
            if before:
                dataset = lance.dataset(uri)
                if dataset.count_rows() != before:
                    _restore(lance, uri, before)
            lance.write_dataset(batches, uri, mode="append" if before else "overwrite")
        return []


class IcebergShard(_TableShard):
    """An append to an Iceberg table. The target is CATALOG/NAMESPACE.TABLE."""

    def close(self) -> list[tuple[str, Path]]:
        catalog_name, _, name = iceberg_name(self._context.target.path)
        catalog = _import("pyiceberg.catalog", "pyiceberg").load_catalog(catalog_name)
        rows = pq.read_table(self._gathered()).replace_schema_metadata(None)
        catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
        table = catalog.create_table_if_not_exists(name, rows.schema)
        before, properties = self._context.exported, {_PROPERTY: "1"}
        found = _records(table.current_snapshot())
        ours = found == 0 or _PROPERTY in table.current_snapshot().summary.additional_properties
        if found != before and not ours:
            raise JobError(
                f"iceberg: {name}: found {found} rows, expected {before}: another program has "
                "changed the table, or it existed before; choose a new one"
            )
        if before == 0:
            table.overwrite(rows, snapshot_properties=properties)
            return []
        if found != before:
            snapshot = next(one for one in table.snapshots() if _records(one) == before)
            table.manage_snapshots().rollback_to_snapshot(snapshot.snapshot_id).commit()
        table.append(rows, snapshot_properties=properties)
        return []


def iceberg_name(target: str) -> tuple[str, str, str]:
    """Returns the catalog and the table's name. Raises JobError for another form."""
    parts = target.rpartition("/")
    if not parts[0] or "/" in parts[0] or "." not in parts[2]:
        raise JobError(
            f"iceberg: found the target '{target}', expected CATALOG/NAMESPACE.TABLE, with a "
            "catalog of pyiceberg's configuration"
        )
    return parts


def check_installed(form: str) -> None:
    """Raises JobError if the package of the form is missing."""
    if form == "lance":
        _import("lance", "pylance")
    else:
        _import("pyiceberg.catalog", "pyiceberg")


def _restore(lance: Any, uri: str, rows: int) -> None:
    for version in reversed(lance.dataset(uri).versions()):
        older = lance.dataset(uri, version=version["version"])
        if older.count_rows() == rows:
            older.restore()
            return
    raise JobError(f"{uri}: found no version with {rows} rows; another program has changed it")


def _records(snapshot: Any) -> int:
    return 0 if snapshot is None else int(snapshot.summary.additional_properties["total-records"])


def _import(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = "lance" if package == "pylance" else "iceberg"
        raise JobError(
            f"--to {extra}: the package {package} is not installed, expected it: "
            f"pip install 'mediamill[{extra}]'"
        ) from error
