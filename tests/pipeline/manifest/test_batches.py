"""Files whose footer is sound and whose pages are not."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.faults import PermanentError, stopped_by
from mediamill.pipeline.ledger.state import LedgerState
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.manifest.resharding import check_files
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.stages.test_read import ledger_of, read_all

ROWS = 1000


def damaged(path, column, compression="none", delta=20):
    """A table of two row groups; the pages of the second one's column are damaged from `delta`."""
    texts = [f"text {number % 7}" for number in range(ROWS)]
    ids = [f"row {number}" for number in range(ROWS)]
    table = pa.table({"id": ids, "uri": texts, "a.b": texts, "c": texts})
    pq.write_table(table, path, row_group_size=ROWS // 2, compression=compression)
    chunks = pq.read_metadata(path).row_group(1)
    chunk = chunks.column(table.schema.get_field_index(column))
    start = chunk.dictionary_page_offset
    data = bytearray(path.read_bytes())
    for position in range(start + delta, start + chunk.total_compressed_size):
        data[position] ^= 0xA5
    path.write_bytes(data)
    return open_manifest(str(path))


@pytest.mark.parametrize("column", ["uri", "a.b", "c"])
@pytest.mark.parametrize(("compression", "delta"), [("none", 20), ("snappy", 20), ("zstd", 0)])
def test_a_damaged_column_is_named(tmp_path, column, compression, delta):
    manifest = damaged(tmp_path / "m.parquet", column, compression, delta)
    with pytest.raises(JobError) as error:
        read_all(manifest, ledger_of(manifest))
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/m.parquet: row group 1: column '{column}': found data that")
    assert isinstance(stopped_by(error.value), PermanentError)  # not: run the same command again


def test_damaged_ids_are_said_before_anything_starts(tmp_path):
    manifest = damaged(tmp_path / "m.parquet", "id")
    with pytest.raises(JobError, match=r"m.parquet: row group 1: column 'id': found data that"):
        check_files(manifest, LedgerState(), storage.resolve(str(tmp_path / "out")))
