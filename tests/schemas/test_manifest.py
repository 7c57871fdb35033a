"""Which columns a manifest may have, and the message for each mistake."""

import datetime

import pyarrow as pa
import pytest

from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError
from mediamill.schemas.job_columns import check_partition_by
from mediamill.schemas.manifest import MEDIA_TYPE, check_manifest_schema

WHERE = "m.parquet"
MEDIA = "list<struct<type: string, uri: string, start_s: double?, end_s: double?>>"
ID_URI = {"id": pa.string(), "uri": pa.string()}


def check(**columns):
    return check_manifest_schema(pa.schema(list(columns.items())), WHERE)


def sentence(*fields, **columns):
    schema = pa.schema([*fields, *columns.items()])
    with pytest.raises(JobError) as caught:
        check_manifest_schema(schema, WHERE)
    return str(caught.value)


def test_short_form():
    manifest = check(**ID_URI, truth=pa.string(), prompt=pa.string(), day=pa.date32())
    assert (manifest.form, manifest.id_type) == ("uri", pa.string())
    assert manifest.optional == ("prompt",)
    assert [(f.name, f.type) for f in manifest.user] == [
        ("truth", pa.string()),
        ("day", pa.date32()),
    ]
    assert manifest.arrow.names == ["id", "uri", "prompt", "truth", "day"]
    assert manifest.has_prompts


def test_long_form():
    manifest = check(id=pa.int64(), media=MEDIA_TYPE, messages=pa.string(), system=pa.string())
    assert manifest.form == "media"
    assert manifest.optional == ("system", "messages")
    assert manifest.has_prompts
    assert not check(id=pa.int64(), media=MEDIA_TYPE, system=pa.string()).has_prompts


@pytest.mark.parametrize(
    ("found", "widened"),
    [
        (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.int8(), pa.int64()),
        (pa.int32(), pa.int64()),
        (pa.uint32(), pa.int64()),
        (pa.dictionary(pa.int8(), pa.int32()), pa.int64()),
    ],
)
def test_ids_are_widened(found, widened):
    assert check(id=found, uri=pa.large_string()).id_type == widened


def test_normalize_returns_one_form_for_all_writers():
    table = pa.table(
        {
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "media": pa.array(
                [[{"uri": "x", "type": "video", "start_s": 3}], []],
                pa.large_list(
                    pa.struct(
                        [
                            ("uri", pa.large_string()),
                            ("type", pa.dictionary(pa.int8(), pa.string())),
                            ("start_s", pa.int64()),
                        ]
                    )
                ),
            ),
            "id": pa.array([1, 2], pa.int32()),
        }
    )
    manifest = check_manifest_schema(table.schema, WHERE)
    plain = manifest.normalize(table)
    assert plain.schema == pa.schema(
        [("id", pa.int64()), ("media", MEDIA_TYPE), ("kind", pa.string())]
    )
    assert plain.to_pylist() == [
        {
            "id": 1,
            "media": [{"type": "video", "uri": "x", "start_s": 3.0, "end_s": None}],
            "kind": "a",
        },
        {"id": 2, "media": [], "kind": "b"},
    ]
    assert manifest.normalize(plain) == plain


def test_seconds_that_are_always_none_are_accepted():
    table = pa.table({"id": [1], "media": [[{"uri": "x", "type": None, "start_s": None}]]})
    struct = pa.struct([("uri", pa.string()), ("type", pa.string()), ("start_s", pa.null())])
    table = table.set_column(1, "media", table["media"].cast(pa.list_(struct)))
    plain = check_manifest_schema(table.schema, WHERE).normalize(table)
    assert plain["media"].to_pylist() == [
        [{"type": None, "uri": "x", "start_s": None, "end_s": None}]
    ]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"uid": pa.string(), "uri": pa.string()},
            "m.parquet: no column 'id' (string or int64), the columns are: uid, uri "
            "(is 'uid' meant?)",
        ),
        (
            {"id": pa.string(), "url": pa.string()},
            f"m.parquet: no column 'uri' (string) or 'media' ({MEDIA}), "
            "the columns are: id, url (is 'url' meant?)",
        ),
        (
            {"id": pa.string(), "path": pa.string()},
            f"m.parquet: no column 'uri' (string) or 'media' ({MEDIA}), the columns are: id, path",
        ),
        (
            {**ID_URI, "media": MEDIA_TYPE},
            "m.parquet: found both columns 'uri' and 'media', expected only one of them: "
            "drop or rename the other",
        ),
        (
            {"id": pa.float64(), "uri": pa.string()},
            "m.parquet: column 'id' has type double, expected string or int64",
        ),
        (
            {"id": pa.uint64(), "uri": pa.string()},
            "m.parquet: column 'id' has type uint64, expected string or int64",
        ),
        (
            {"id": pa.string(), "uri": pa.binary()},
            "m.parquet: column 'uri' has type binary, expected string",
        ),
        (
            {**ID_URI, "prompt": pa.int64()},
            "m.parquet: column 'prompt' has type int64, expected string",
        ),
        (
            {**ID_URI, "messages": pa.list_(pa.string())},
            "m.parquet: column 'messages' has type list<item: string>, "
            "expected string (the chat as JSON text)",
        ),
        (
            {"id": pa.null(), "uri": pa.string()},
            "m.parquet: column 'id' has type null, expected string or int64",
        ),
        (
            {"id": pa.string(), "media": pa.list_(pa.string())},
            f"m.parquet: column 'media' has type list<item: string>, expected {MEDIA}",
        ),
        (
            {**ID_URI, "text": pa.string()},
            "m.parquet: column 'text' is also a column that the job writes: "
            "rename it in the manifest, for example to 'source_text'",
        ),
        (
            {**ID_URI, "patches": pa.string()},
            "m.parquet: column 'patches' is also a column that the job uses between its stages: "
            "rename it in the manifest, for example to 'source_patches'",
        ),
    ],
)
def test_messages(columns, expected):
    assert sentence(**columns) == expected


@pytest.mark.parametrize(
    ("struct", "expected"),
    [
        (
            [("type", pa.string()), ("url", pa.string())],
            [
                "m.parquet: column 'media' has no field 'uri' (string), "
                "the fields are: type, url (is 'url' meant?)",
                f"m.parquet: column 'media' has an unknown field 'url', expected {MEDIA}",
            ],
        ),
        (
            [("type", pa.int64()), ("uri", pa.string()), ("start_s", pa.string())],
            [
                "m.parquet: column 'media': field 'type' has type int64, expected string",
                "m.parquet: column 'media': field 'start_s' has type string, "
                "expected double (seconds)",
            ],
        ),
    ],
)
def test_messages_about_media(struct, expected):
    media = pa.list_(pa.struct(struct))
    assert sentence(id=pa.string(), media=media).split("\n") == expected


def test_two_columns_of_one_name():
    fields = [("id", pa.string()), ("uri", pa.string()), ("a", pa.int8()), ("a", pa.int8())]
    assert sentence(*fields) == "m.parquet: found 2 columns named 'a', expected one"


@pytest.mark.parametrize("name", c.RESULT_COLUMNS + c.IN_FLIGHT_COLUMNS)
def test_no_column_of_the_job_can_be_a_users(name):
    assert f"column '{name}' is also a column" in sentence(**ID_URI, **{name: pa.string()})


def test_every_mistake_is_reported():
    said = sentence(ident=pa.string(), uri=pa.int64(), status=pa.string()).split("\n")
    assert ["'id'" in said[0], "'uri'" in said[1], "'status'" in said[2]] == [True] * 3


PARTITIONED = {
    **ID_URI,
    "kind": pa.dictionary(pa.int32(), pa.string()),
    "day": pa.date32(),
    "shard": pa.int32(),
    "good": pa.bool_(),
    "score": pa.float64(),
    "at": pa.timestamp("us"),
    "tags": pa.list_(pa.string()),
}


def test_partition_columns():
    manifest = check(**PARTITIONED)
    check_partition_by(manifest, ["kind", "day", "shard", "good"], WHERE)
    check_partition_by(manifest, [], WHERE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "kinds",
            "m.parquet: partition_by names column 'kinds', the columns are: "
            "kind, day, shard, good, score, at, tags (is 'kind' meant?)",
        ),
        (
            "score",
            "m.parquet: partition_by names column 'score' of type double, "
            "expected a string, integer, boolean or date column",
        ),
        (
            "at",
            "m.parquet: partition_by names column 'at' of type timestamp[us], "
            "expected a string, integer, boolean or date column",
        ),
        (
            "status",
            "partition_by: column 'status' is what the job writes, expected a column of the "
            "manifest m.parquet (kind, day, shard, good, score, at, tags)",
        ),
        (
            "id",
            "partition_by: column 'id' is read by Mediamill itself, expected one of the "
            "manifest's further columns (kind, day, shard, good, score, at, tags)",
        ),
    ],
)
def test_wrong_partition_columns(name, expected):
    with pytest.raises(JobError) as caught:
        check_partition_by(check(**PARTITIONED), [name], WHERE)
    assert str(caught.value) == expected


def test_user_values_pass_through_untouched():
    day = datetime.date(2024, 2, 29)
    table = pa.table({"uri": ["x"], "day": [day], "tags": [["a", None]], "id": ["1"]})
    plain = check_manifest_schema(table.schema, WHERE).normalize(table)
    assert plain.to_pylist() == [{"id": "1", "uri": "x", "day": day, "tags": ["a", None]}]
