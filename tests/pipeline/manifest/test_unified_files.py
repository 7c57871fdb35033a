"""Files of one manifest whose columns differ, as dataset readers unify them; and growing ones."""

import base64
import datetime
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.manifest.check_values import check_values
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.schemas.errors import JobError
from tests.pipeline.odd_columns import BROKEN
from tests.pipeline.stages.test_read import ledger_of, read_all
from tests.pipeline.test_odd_tables import result_of, write_table

D = decimal.Decimal
MILLI, MICRO, NANO = (pa.timestamp(unit) for unit in ("ms", "us", "ns"))
EPOCH = datetime.datetime.fromisoformat("1970-01-01")


def arrays(first, other):
    return pa.array(*first), pa.array(*other)


def struct(**fields):
    return pa.struct(list(fields.items()))


# The columns of two files, the type of both together, and the values of the second one in it.
UNIFIED = {
    "null": (([1], pa.int8()), ([None], pa.null()), pa.int8(), [None]),
    "null_first": (([None], pa.null()), (["x"], pa.string_view()), pa.string_view(), ["x"]),
    "large_string": ((["a"], pa.string()), (["b"], pa.large_string()), pa.large_string(), ["b"]),
    "string_view": ((["a"], pa.string()), (["b"], pa.string_view()), pa.string(), ["b"]),
    "views": ((["a"], pa.large_string()), (["b"], pa.string_view()), pa.large_string(), ["b"]),
    "binary": (([b"a"], pa.binary(1)), ([b"bc"], pa.binary_view()), pa.binary(), [b"bc"]),
    "fixed": (([b"a"], pa.binary(1)), ([b"bc"], pa.binary(2)), pa.binary(), [b"bc"]),
    "wider": (([1], pa.int8()), ([2**40], pa.int64()), pa.int64(), [2**40]),
    "narrower": (([1], pa.int64()), ([2], pa.int8()), pa.int64(), [2]),
    "signs": (([-1], pa.int32()), ([2**32 - 1], pa.uint32()), pa.int64(), [2**32 - 1]),
    "small_signs": (([-1], pa.int8()), ([255], pa.uint8()), pa.int16(), [255]),
    "all_signs": (([-1], pa.int64()), ([2**64 - 1], pa.uint64()), pa.decimal128(20, 0),
                  [D(2**64 - 1)]),
    "double": (([1.5], pa.float64()), ([2**53], pa.int64()), pa.float64(), [2.0**53]),
    "double_last": (([2], pa.int32()), ([1.5], pa.float32()), pa.float64(), [1.5]),
    "floats": (([1.5], pa.float64()), ([0.5], pa.float16()), pa.float64(), [0.5]),
    "decimals": (([D("1.5")], pa.decimal128(5, 1)), ([D("0.25")], pa.decimal32(4, 2)),
                 pa.decimal128(6, 2), [D("0.25")]),
    "decimal_256": (([D("1")], pa.decimal128(38, 0)), ([D("0.25")], pa.decimal128(38, 2)),
                    pa.decimal256(40, 2), [D("0.25")]),
    "decimal_int": (([D("1.5")], pa.decimal128(5, 1)), ([7], pa.int64()), pa.decimal128(20, 1),
                    [D("7")]),
    "times": (([1], MICRO), ([2], MILLI), MICRO, [EPOCH + datetime.timedelta(milliseconds=2)]),
    "zones": (([1], pa.timestamp("us", "Mars/Olympus")), ([2], pa.timestamp("us", "+01:00")),
              pa.timestamp("us", "UTC"), None),
    "durations": (([1], pa.duration("ms")), ([2], pa.duration("us")), pa.duration("us"), None),
    "clocks": (([1], pa.time32("ms")), ([2], pa.time64("ns")), pa.time64("ns"), None),
    "days": (([1], MICRO), ([1], pa.date32()), MICRO, [EPOCH + datetime.timedelta(days=1)]),
    "plain": ((["a"], pa.string()), (["b"], pa.dictionary(pa.int8(), pa.string())), pa.string(),
              ["b"]),
    "lists": (([[1]], pa.list_(pa.int8())), ([[2]], pa.large_list(pa.int64())),
              pa.large_list(pa.int64()), [[2]]),
    "list_views": (([[1]], pa.list_(pa.int8())), ([[2, None], ], pa.list_view(pa.int8())),
                   pa.list_(pa.int8()), [[2, None]]),
    "fixed_lists": (([[1, 2]], pa.list_(pa.int8(), 2)), ([[3]], pa.list_(pa.int8(), 1)),
                    pa.list_(pa.int8()), [[3]]),
    "empty_lists": (([["a"]], pa.list_(pa.string())), ([[]], pa.list_(pa.null())),
                    pa.list_(pa.string()), [[]]),
    "fields": (([{"a": 1}], struct(a=pa.int8())), ([{"b": "x"}], struct(b=pa.string())),
               struct(a=pa.int8(), b=pa.string()), [{"a": None, "b": "x"}]),
    "order": (([{"a": 1, "b": 2}], struct(a=pa.int8(), b=pa.int8())),
              ([{"b": 3, "a": 4}], struct(b=pa.int8(), a=pa.int8())),
              struct(a=pa.int8(), b=pa.int8()), [{"a": 4, "b": 3}]),
    "deep": (([[{"a": [1]}]], pa.list_(struct(a=pa.list_(pa.int8())))),
             ([[{"a": [1.5], "n": None}]], pa.list_(struct(a=pa.list_(pa.float64()), n=pa.null()))),
             pa.list_(struct(a=pa.list_(pa.float64()), n=pa.null())), [[{"a": [1.5], "n": None}]]),
    "maps": (([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
             ([[("b", 2)]], pa.map_(pa.string_view(), pa.int64())),
             pa.map_(pa.string(), pa.int64()), [[("b", 2)]]),
    "json": ((['{}'], pa.string()), (['{"a": 1}'], pa.json_()), pa.string(), ['{"a": 1}']),
}  # fmt: skip


@pytest.mark.parametrize("name", UNIFIED)
def test_two_files_have_one_type_together(tmp_path, name):
    first, other, kind, values = UNIFIED[name]
    for number, (value, file_type) in enumerate((first, other)):
        if isinstance(file_type, pa.BaseExtensionType):
            storage = pa.array(value, file_type.storage_type)
            column = pa.ExtensionArray.from_storage(file_type, storage)
        elif isinstance(value[0], int) and not pa.types.is_integer(file_type):
            bits = 32 if str(file_type) in ("date32[day]", "time32[ms]") else 64
            column = pa.array(value, getattr(pa, f"int{bits}")())
            column = column.cast(file_type) if pa.types.is_floating(file_type) else column
            column = column if pa.types.is_floating(file_type) else column.view(file_type)
        else:
            column = pa.array(value, file_type)
        write_table(tmp_path / "m" / f"{number}.parquet", c=column)
    manifest = open_manifest(str(tmp_path / "m"))
    assert manifest.schema.user == (pa.field("c", kind),)
    assert check_values(manifest, (), begun=False) == ()
    result = result_of(tmp_path / "out", manifest)["c"]
    assert result.type == kind
    if values is not None:
        assert result.slice(1).to_pylist() == values


@pytest.mark.parametrize(
    ("first", "other", "words"),
    [
        (pa.string(), pa.int64(), "'c' is int64, expected string as in .*0.parquet"),
        (pa.string(), pa.binary(), "'c' is binary, expected string"),
        (pa.bool_(), pa.int8(), "'c' is int8, expected bool"),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), "'c' is timestamp.*one has a time zone"),
        (pa.list_(pa.int8()), pa.list_(pa.string()), "'c' is list<element: string>"),
        (pa.list_(pa.int8()), pa.int8(), "'c' is int8, expected list<element: int8>"),
        (struct(a=pa.int8()), struct(a=pa.string()), "'c' is struct<a: string>"),
        (pa.decimal128(9, 2), pa.float64(), "'c' is double, expected decimal128"),
        (pa.uuid(), pa.json_(), "'c' is extension<arrow.json>, expected extension<arrow.uuid>"),
    ],
)
def test_what_no_type_holds_is_refused(tmp_path, first, other, words):
    for number, kind in enumerate((first, other)):
        plain = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        column = pa.nulls(1, plain)
        if plain is not kind:
            column = pa.ExtensionArray.from_storage(kind, column)
        write_table(tmp_path / f"{number}.parquet", c=column)
    with pytest.raises(JobError, match=f"1.parquet: column {words}"):
        open_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("first", "other", "words"),
    [
        (([1.5], pa.float64()), ([1, 2**53 + 1], pa.int64()), "row 1: column 'c' is int64"),
        (([1], NANO), ([0, 2**60], MILLI), "row 1: column 'c' is timestamp"),
        (([[0.5]], pa.list_(pa.float64())), ([[1], [2**60 + 1]], pa.list_(pa.int64())), "row 1"),
        (([1], NANO), ([0, 2**30], pa.date32()), "row 1: column 'c' is date32"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_found_before_the_job(tmp_path, first, other, words):
    for number, (values, kind) in enumerate((first, other)):
        bits = 32 if kind == pa.date32() else 64
        plain = isinstance(values[0], int) and not pa.types.is_integer(kind)
        column = pa.array(values, getattr(pa, f"int{bits}")() if plain else kind)
        write_table(tmp_path / f"{number}.parquet", c=column.view(kind) if plain else column)
    with pytest.raises(JobError, match=f"1.parquet: {words}"):
        check_values(open_manifest(str(tmp_path)), (), begun=False)


def test_columns_that_only_some_files_have(tmp_path):
    write_table(tmp_path / "m" / "a.parquet", x=pa.array([1]), prompt=["p"])
    write_table(tmp_path / "m" / "b.parquet", y=pa.array(["why"]))
    write_table(tmp_path / "m" / "k=5" / "c.parquet", x=pa.array([2.5]))
    manifest = open_manifest(str(tmp_path / "m"))
    rows = read_all(manifest, ledger_of(manifest)).select(["id", "prompt", "x", "y", "k"])
    assert rows.to_pylist() == [
        {"id": "a-0", "prompt": "p", "x": 1.0, "y": None, "k": None},
        {"id": "b-0", "prompt": None, "x": None, "y": "why", "k": None},
        {"id": "c-0", "prompt": None, "x": 2.5, "y": None, "k": 5},
    ]


def test_columns_without_any_value_are_kept(tmp_path):
    nothing = {name: pa.nulls(2) for name in ("note", "prompt", "system")}
    path = write_table(tmp_path / "m.parquet", **nothing)
    assert result_of(tmp_path / "out", open_manifest(str(path)))["note"].type == pa.null()


@pytest.mark.parametrize("media", [pa.nulls(1), pa.array([[]], pa.list_(pa.null()))])
def test_media_without_any_value_are_media(tmp_path, media):
    pq.write_table(pa.table({"id": ["a"], "media": media}), tmp_path / "m.parquet")
    assert open_manifest(str(tmp_path / "m.parquet")).schema.form == "media"


# Growing outputs.


def grown(folder, first):
    """Opens the manifest as the next run does: the header is that of the first run's output."""
    return open_manifest(str(folder), (), {"layout": {"columns": {}}, **first.header()})


def test_folders_stay_numbers_or_text_while_a_manifest_grows(tmp_path):
    for shard in "12":
        write_table(tmp_path / f"shard={shard}" / f"name={'ab'[int(shard) - 1]}" / "f.parquet")
    first = open_manifest(str(tmp_path))
    write_table(tmp_path / "shard=extra" / "name=7" / "f.parquet")
    later = grown(tmp_path, first)
    assert later.schema == first.schema
    assert [dict(file.partitions) for file in later.files] == [
        {"shard": 1, "name": "a"},
        {"shard": 2, "name": "b"},
        {"shard": None, "name": "7"},
    ]
    (note,) = later.notes
    assert "column 'shard' is null for the rows in 1 folders, such as 'shard=extra'" in note


def test_an_output_of_an_older_version_keeps_its_types_too(tmp_path):
    write_table(tmp_path / "shard=1" / "f.parquet")
    write_table(tmp_path / "shard=x" / "f.parquet")
    header = {"layout": {"columns": {"shard": "int64", "id": "string"}}}
    assert open_manifest(str(tmp_path), (), header).schema.user[0].type == pa.int64()
    header = {"layout": {"columns": {"shard": "string"}}}
    assert open_manifest(str(tmp_path), (), header).schema.user[0].type == pa.string()


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"c": pa.array([2], pa.int64())}, None),
        ({"c": pa.array([2.0])}, None),
        ({"c": pa.array([2**31], pa.int64())}, "row 0: column 'c' is int64, .* int32, which does"),
        ({"c": pa.array([2.5])}, "row 0: column 'c' is double"),
        ({"c": pa.array(["2"])}, "column 'c' is string, expected int32 as in the files that the"),
        ({"c": pa.array([2], pa.int32()), "new": pa.array([1])}, "found column 'new', which the"),
        ({"s": pa.array([{"a": 1, "b": 2}])}, "column 's' has the field 'b', which the files"),
        ({"n": pa.array([2])}, "column 'n' is int64, and had no value and no type when"),
        ({}, None),
    ],
)
def test_later_files_become_what_the_output_has(tmp_path, column, words):
    write_table(
        tmp_path / "a.parquet",
        c=pa.array([1], pa.int32()),
        s=pa.array([{"a": 1}]),
        n=pa.nulls(1),
    )
    first = open_manifest(str(tmp_path))
    write_table(tmp_path / "b.parquet", **(column or {"c": pa.nulls(1)}))
    if words is None:
        later = grown(tmp_path, first)
        check_values(later, (), begun=True)
        assert later.schema == first.schema
        assert read_all(later, ledger_of(later))["c"].type == pa.int32()
        return
    with pytest.raises(JobError, match=f"b.parquet: {words}"):
        check_values(grown(tmp_path, first), (), begun=True)


def test_the_header_holds_any_schema(tmp_path):
    from tests.pipeline.odd_columns import COLUMNS

    first = open_manifest(str(write_table(tmp_path / "m.parquet", **COLUMNS)))
    assert grown(tmp_path, first).schema == first.schema
    assert base64.b64decode(first.header()["manifest_schema"])


# Folders, and what is left out.


def test_what_is_left_out_is_told(tmp_path):
    write_table(tmp_path / "a.parquet")
    write_table(tmp_path / "_retry=1" / "b.parquet")
    write_table(tmp_path / ".x=y" / "_k=v" / "c.parquet")
    write_table(tmp_path / "data.parquet" / "part-0.parquet")
    write_table(tmp_path / "_old" / "d.parquet")
    write_table(tmp_path / "k=1" / "_e.parquet")
    for name in ("_SUCCESS", "README.txt", "a.parquet.crc", "empty.parquet"):
        (tmp_path / name).write_bytes(b"" if name == "empty.parquet" else b"x")
    (tmp_path / "folder.parquet").mkdir()
    manifest = open_manifest(str(tmp_path))
    assert [file.name for file in manifest.files] == [
        ".x=y/_k=v/c.parquet",
        "_retry=1/b.parquet",
        "a.parquet",
        "data.parquet/part-0.parquet",
    ]
    assert [dict(file.partitions) for file in manifest.files][:2] == [
        {".x": "y", "_k": "v", "_retry": None},
        {".x": None, "_k": None, "_retry": 1},
    ]
    said = " | ".join(sorted(note.partition(": ")[2] for note in manifest.notes))
    assert said == (
        "left out 1 file (no bytes): empty.parquet | "
        "left out 2 files (no Parquet file by its name): README.txt, a.parquet.crc | "
        "left out 3 files (hidden by a name that begins with . or _): _SUCCESS, _old/d.parquet, "
        "k=1/_e.parquet"
    )


def test_folders_that_give_a_column_twice_or_the_id_are_refused(tmp_path):
    write_table(tmp_path / "twice" / "k=1" / "k=2" / "f.parquet")
    pq.write_table(pa.table({"uri": ["u"]}), write_table(tmp_path / "ids" / "id=5" / "f.parquet"))
    with pytest.raises(JobError, match=r"a column twice in 'k=1/k=2/f.parquet'"):
        open_manifest(str(tmp_path / "twice"))
    with pytest.raises(JobError, match="found the column 'id' in the path"):
        open_manifest(str(tmp_path / "ids"))


def test_a_column_of_the_file_and_of_the_path_goes_by_the_file(tmp_path):
    write_table(tmp_path / "k=1" / "a.parquet", k=pa.array([7]))
    write_table(tmp_path / "k=2" / "b.parquet")
    manifest = open_manifest(str(tmp_path))
    assert read_all(manifest, ledger_of(manifest))["k"].to_pylist() == [7, 2]


def test_odd_folder_names(tmp_path):
    texts = ["a%2Fb", "%E9", "", "caf\u00e9", "1e5", "True", " 1", "nan", "a=b", "٣"]
    for number, text in enumerate(texts):
        write_table(tmp_path / f"n={number:02}" / f"k={text}" / "f.parquet")
    write_table(tmp_path / "n=10" / "=x" / "f.parquet")
    values = [file.partitions["k"] for file in open_manifest(str(tmp_path)).files]
    expected = ["a/b", "%E9", "", "caf\u00e9", "1e5", "True", " 1", "nan", "a=b", "٣", None]
    assert values == expected


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path, cut):
    path = write_table(tmp_path / "m" / "a.parquet", c=pa.array(range(100)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(JobError, match=r"a.parquet: found no readable Parquet file"):
        open_manifest(str(tmp_path / "m"))


def test_a_column_name_that_is_not_utf8_is_a_job_error(tmp_path):
    path = write_table(tmp_path / "m.parquet", ZZZZ=pa.array([1]))
    path.write_bytes(path.read_bytes().replace(b"ZZZZ", b"caf\xe9"))
    with pytest.raises(JobError, match=r"m.parquet: found no readable Parquet file"):
        open_manifest(str(path))


# Values of partition columns.


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["00501", "01001"], "read '00501' back from a folder name as 501"),
        (["007", None], "read '007' back"),
        (["0x10", "1"], "read '0x10' back from a folder name as 16"),
        (["-0", "5"], "read '-0' back"),
        (["__HIVE_DEFAULT_PARTITION__"], "which reads back as null"),
        (["y" * 300], "a value of 300 characters"),
    ],
)
def test_partition_values_that_read_back_as_others_are_refused(tmp_path, values, words):
    write_table(tmp_path / "m.parquet", z=pa.array(values))
    manifest = open_manifest(str(tmp_path))
    with pytest.raises(JobError, match=words):
        check_values(manifest, ("z",), begun=False)
    if "back from" in words:  # an output with rows goes on
        (note,) = check_values(manifest, ("z",), begun=True)
        assert repr(values[0]) in note


@pytest.mark.parametrize("values", [["1e5", "2"], [" 1"], ["+5"], ["1.50"], ["nan", "1"]])
def test_partition_values_that_some_readers_change_are_told(tmp_path, values):
    write_table(tmp_path / "m.parquet", z=pa.array(values))
    (note,) = check_values(open_manifest(str(tmp_path)), ("z",), begun=False)
    assert f"may read {values[0]!r} back" in note


@pytest.mark.parametrize(
    "values",
    [["00501", "a"], ["1", "2"], ["True", "False"], ["null"], ["2024-01-01"], [""], [None],
     ["3000000000"], ["a/b"], ["."], ["\u0663"]],
)  # fmt: skip
def test_other_partition_values_are_quiet(tmp_path, values):
    write_table(tmp_path / "m.parquet", z=pa.array(values, pa.string()))
    assert check_values(open_manifest(str(tmp_path)), ("z",), begun=False) == ()


def test_folders_that_were_folders_stay_folders(tmp_path):
    for month in ("01", "02"):
        write_table(tmp_path / f"month={month}" / "f.parquet")
    (note,) = check_values(open_manifest(str(tmp_path)), ("month",), begun=False)
    assert "'01'" in note


def test_a_partition_value_that_is_not_utf8_is_refused(tmp_path):
    write_table(tmp_path / "m.parquet", z=BROKEN)
    with pytest.raises(JobError, match=r"m.parquet: row 1: partition_by names column 'z'.*UTF-8"):
        check_values(open_manifest(str(tmp_path)), ("z",), begun=False)


def test_dates_beyond_python_can_be_folders(tmp_path):
    from mediamill.pipeline.ledger import hive_paths

    days = pa.chunked_array([pa.array([0, 2**31 - 1, None], pa.int32()).cast(pa.date32())])
    folders = [hive_paths.folder(["d"], [value]) for value in hive_paths.partition_values(days)]
    assert folders == ["d=1970-01-01", "d=5881580-07-11", "d=__HIVE_DEFAULT_PARTITION__"]
