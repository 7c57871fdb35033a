"""Reads Lance and Iceberg tables as streams of Arrow, with the libraries of the two formats."""

import hashlib
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from mediamill.pipeline.sources.table_columns import ColumnRules
from mediamill.pipeline.sources.tables import ArrowPart, arrow_source
from mediamill.pipeline.sources.unit import BATCH_ROWS, Source
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

ICEBERG_SCHEME = "iceberg"
_METADATA = ".metadata.json"


def is_lance(folder: Place) -> bool:
    """Whether a folder is a Lance data set."""
    return folder.path.endswith(".lance") or storage.exists(folder / "_versions")


def newest_metadata(folder: Place) -> Place | None:
    """The newest metadata file of an Iceberg table; None for a folder that is none."""
    metadata = folder / "metadata"
    if not storage.exists(metadata):
        return None
    names = [posixpath.basename(path) for path in metadata.fs.ls(metadata.path, detail=False)]
    named = sorted((name for name in names if name.endswith(_METADATA)), key=_metadata_version)
    return metadata / named[-1] if named else None


def _metadata_version(name: str) -> tuple[int, str]:
    """Metadata files are named `00003-UUID.metadata.json` or `v3.metadata.json`."""
    digits = name.removeprefix("v").split("-")[0].removesuffix(_METADATA)
    return (int(digits) if digits.isascii() and digits.isdigit() else -1, name)


def list_lance(folder: Place, rules: ColumnRules, known: pa.Schema | None) -> Source:
    """Returns the source of a Lance data set's rows. Raises JobError."""
    try:
        import lance
    except ImportError as error:
        raise _missing(folder.url, "Lance", "pylance", "lance") from error
    try:
        dataset = lance.dataset(folder.url)
    except (OSError, ValueError) as error:
        raise _unreadable(folder.url, error) from error
    fragments = [
        ArrowPart(
            f"fragment {fragment.fragment_id}", _digest(fragment.metadata), _batches(fragment)
        )
        for fragment in dataset.get_fragments()
    ]
    return arrow_source(folder.url, dataset.schema, fragments, rules, known)


def list_iceberg(
    url: str, metadata: Place | None, rules: ColumnRules, known: pa.Schema | None
) -> Source:
    """Returns the source of an Iceberg table's rows.

    url: iceberg://CATALOG/NAMESPACE.TABLE, of a catalog that pyiceberg is configured for; or what
    `metadata` was found at. Raises JobError.
    """
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.table import StaticTable
    except ImportError as error:
        raise _missing(url, "Iceberg", "pyiceberg", "iceberg") from error
    table: Any
    try:
        if metadata is not None:
            table = StaticTable.from_metadata(metadata.url)
        else:
            catalog, _, name = url.partition("://")[2].partition("/")
            table = load_catalog(catalog).load_table(name)
        scan = table.scan()
        found = scan.projection().as_arrow()
    except Exception as error:  # the library has many of its own
        raise _unreadable(url, error) from error
    snapshot = table.current_snapshot()
    version = str(snapshot.snapshot_id) if snapshot is not None else "empty"

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in scan.to_arrow_batch_reader():
            yield from _split(batch)

    part = ArrowPart("table", version, batches)
    return arrow_source(url, found.remove_metadata(), [part], rules, known)


def _batches(fragment: Any) -> Callable[[], Iterator[pa.RecordBatch]]:
    return lambda: fragment.to_batches(batch_size=BATCH_ROWS)


def _split(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


def _digest(metadata: object) -> str:
    return hashlib.blake2b(repr(metadata).encode(), digest_size=16).hexdigest()


def _missing(url: str, kind: str, package: str, extra: str) -> JobError:
    return JobError(
        f"{storage.redact(url)}: found a table of {kind}, which needs the package {package}: "
        f"install mediamill[{extra}]"
    )


def _unreadable(url: str, error: Exception) -> JobError:
    reason = storage.redact_text(str(error)).strip().split("\n")[0][:500]
    return JobError(f"{storage.redact(url)}: the table cannot be read: {reason}")
