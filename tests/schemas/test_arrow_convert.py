"""Rows of tables whose columns hold more than 32-bit offsets address."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.schemas.arrow_convert import parquet_options, take_rows


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.list_(pa.string())], ids=str)
def test_rows_of_a_table_beyond_two_gib(kind):
    texts = pa.array(["x" * 1_000_000] * 64)
    is_list = pa.types.is_list(kind)
    chunk = pa.ListArray.from_arrays(range(65), texts) if is_list else texts.cast(kind)
    # The chunks share their memory, but pyarrow would join them into one array.
    table = pa.table({"text": pa.chunked_array([chunk] * 40), "n": range(64 * 40)})
    wanted = [5, 2559, 63, 64, 65, 0, 5]
    taken = take_rows(table, np.array(wanted))
    assert taken.schema == table.schema
    assert taken["n"].to_pylist() == wanted
    assert taken["text"].combine_chunks().equals(pa.concat_arrays([chunk[:1]] * len(wanted)))
    assert take_rows(table, np.array([], np.int64)).num_rows == 0


def test_long_row_groups_of_views_can_be_written(tmp_path):
    views = pa.array([["a"]] * 25_000, pa.list_(pa.string_view()))
    table = pa.table({"c": views, "s": pa.array(["x"] * 25_000, pa.string_view())})
    with pq.ParquetWriter(tmp_path / "m", table.schema, **parquet_options(table.schema)) as writer:
        writer.write_table(table)
    assert pq.ParquetFile(tmp_path / "m").read().equals(table)
