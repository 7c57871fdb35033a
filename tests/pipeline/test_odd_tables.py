"""Columns of any type and name pass through read and write unchanged."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.records import parsed_schema, replace_columns
from mediamill.pipeline.stages.read import plan_splits, read_split
from mediamill.pipeline.stages.write import write_rows
from tests.pipeline.odd_columns import BROKEN, COLUMNS, DICTIONARIES, NAMES
from tests.pipeline.stages.test_read import ledger_of
from tests.pipeline.stages.test_write import Calls, files, rules_for


def write_table(path, **columns):
    rows = len(next(iter(columns.values()))) if columns else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": [f"{path.stem}-{n}" for n in range(rows)], "uri": ["u"] * rows, **columns}
    pq.write_table(pa.table(columns), path)
    return path


def result_of(folder, manifest, state=None):
    """The rows of a run whose stages add nothing: in pieces and orders as Ray may bring them."""
    calls = Calls(folder, names=[file.name for file in manifest.files])
    schema = parsed_schema(manifest.schema)
    for split in plan_splits(manifest, state or ledger_of(manifest)):
        for table in read_split(split, manifest.schema, manifest.partitions):
            added = [name for name in schema.names if name not in table.schema.names]
            empty = {name: [None] * len(table) for name in added}
            table = replace_columns(table, empty, schema)
            half = len(table) // 2
            table = pa.concat_tables([table.slice(half), table.slice(0, half)])
            write_rows(table, rules_for(folder, manifest.schema), calls)
    calls.flush()
    tables = [pq.read_table(folder / name, partitioning=None) for name in files(folder)]
    return pa.concat_tables(tables)


def assert_equal(found, expected, name):
    assert found.type == expected.type, name
    if pa.types.is_floating(expected.type):  # NaN differs from itself
        bits = f"u{expected.type.bit_width // 8}"
        pair = [column.combine_chunks().to_numpy(False).view(bits) for column in (found, expected)]
        assert np.array_equal(*pair), name
        return
    assert found.equals(expected), name


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_any_type_arrives_as_it_was(tmp_path, name):
    path = write_table(tmp_path / "m.parquet", c=COLUMNS[name])
    expected = pq.read_table(path)
    assert expected["c"].type == COLUMNS[name].type  # Parquet itself keeps the type
    assert_equal(result_of(tmp_path / "out", open_manifest(str(path)))["c"], expected["c"], name)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_a_dictionary_arrives_as_its_values(tmp_path, name):
    path = write_table(tmp_path / "m.parquet", c=DICTIONARIES[name])
    values = DICTIONARIES[name].dictionary_decode()
    result = result_of(tmp_path / "out", open_manifest(str(path)))
    assert_equal(result["c"], pa.chunked_array([values]), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_any_name(tmp_path, name):
    path = tmp_path / "m.parquet"
    ids = pa.array([f"i{n}" for n in range(6)])
    # The odd name comes first, so that readers that take a prefix of a name would find it.
    pq.write_table(pa.table({name: BROKEN, "id": ids, "uri": ["u"] * 6}), path)
    manifest = open_manifest(str(path))
    result = result_of(tmp_path / "out", manifest)
    assert result["id"].to_pylist() == ids.to_pylist()
    assert result[name].equals(pa.chunked_array([BROKEN]))
    same = {"Id": "id", "URI": "uri", "Text": "text"}.get(name)
    assert [f"'{same}'" in note for note in manifest.notes] == [True] * bool(same)


def test_all_of_them_and_thousands_of_columns_at_once(tmp_path):
    columns = COLUMNS | DICTIONARIES | {f"n{n}": pa.array(range(6)) for n in range(2000)}
    path = write_table(tmp_path / "m.parquet", **columns)
    result, expected = result_of(tmp_path / "out", open_manifest(str(path))), pq.read_table(path)
    for name in columns:
        if name not in DICTIONARIES:
            assert_equal(result[name], expected[name], name)


def test_field_metadata_and_extension_types_that_nobody_knows_stay(tmp_path):
    metadata = {b"ARROW:extension:name": b"geo.unknown", b"unit": b"m"}
    field = pa.field("c", pa.int64(), metadata=metadata)
    columns = [pa.array(["a"]), pa.array(["u"]), pa.array([1])]
    schema = pa.schema([("id", pa.string()), ("uri", pa.string()), field])
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "m.parquet")
    result = result_of(tmp_path / "out", open_manifest(str(tmp_path / "m.parquet")))
    assert metadata.items() <= result.schema.field("c").metadata.items()
