"""Reads batches of a manifest's file, and says which column cannot be read."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError


def read_batches(
    parquet: pq.ParquetFile,
    place: Place,
    rows: int,
    columns: Sequence[str],
    groups: Sequence[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yields batches of at most `rows` rows. groups: row groups; None for all.

    place: of the file. Raises JobError for pages that are damaged, or that pyarrow cannot read;
    errors of the storage pass.
    """
    groups = range(parquet.metadata.num_row_groups) if groups is None else groups
    try:
        yield from parquet.iter_batches(rows, groups, columns)
    except (OSError, pa.ArrowException) as error:
        if not is_content_error(error):
            raise
        found = _unreadable(parquet, rows, columns, groups)
        where = f"row group {found[0]}: column {found[1]!r}: " if found else ""
        reason = " ".join(str(error).split())[:300]
        # Not chained: a message of Ray's would name the first error of a chain.
        raise JobError(
            f"{storage.redact(place.url)}: {where}found data that cannot be read ({reason}), "
            "expected a sound Parquet file: write the file again, or drop the column"
        ) from None


def is_content_error(error: Exception) -> bool:
    """Whether the file's content is the cause; pyarrow's errors of that kind have no number."""
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


def _unreadable(
    parquet: pq.ParquetFile, rows: int, columns: Sequence[str], groups: Sequence[int]
) -> tuple[int, str] | None:
    """Returns the first row group and column that cannot be read."""
    for group in groups:
        for column in columns:
            try:
                for _ in parquet.iter_batches(rows, [group], [column]):
                    pass
            except (OSError, pa.ArrowException) as error:
                if is_content_error(error):
                    return group, column
                raise
    return None
