"""Makes the tables that the first stage yields out of rows of a manifest's file."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mediamill.pipeline.records import ROW_STRUCT, STATUS_FIELDS
from mediamill.pipeline.row_values import with_unreadable_values
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import ManifestSchema


def manifest_columns(manifest: ManifestSchema) -> set[str]:
    """Returns the names that the columns of the manifest have in its files."""
    known = set(manifest.arrow.names)
    if manifest.media_column is not None:
        known = known - {manifest.form, c.MEDIA_BYTES} | {manifest.media_column}
    return known


def read_rows(
    table: pa.Table,
    chosen: npt.NDArray[np.int64],
    numbers: tuple[int, int],
    manifest: ManifestSchema,
) -> pa.Table:
    """Returns rows of a file as a table of `read_schema`; those that no stage can read are errors.

    table: consecutive rows of the file, with the columns of its hive path.
    chosen: positions in the table. numbers: of the file, and of the table's first row in it.
    """
    table = manifest.normalize(table)
    if chosen.size < table.num_rows:
        table = table.take(pa.array(chosen, pa.int64()))
    number, first = numbers
    return with_unreadable_values(with_ordinals(table, number, chosen + first), manifest)


def with_ordinals(table: pa.Table, number: int, indices: npt.NDArray[np.int64]) -> pa.Table:
    """Adds the column ROW (file number and row index), and empty STATUS_FIELDS."""
    files = np.full(len(indices), number, np.int32)
    ordinals = pa.StructArray.from_arrays([files, indices], fields=list(ROW_STRUCT))
    table = table.append_column(pa.field(c.ROW, ROW_STRUCT), ordinals)
    for field in STATUS_FIELDS:
        table = table.append_column(field, pa.nulls(len(indices), field.type))
    return table
