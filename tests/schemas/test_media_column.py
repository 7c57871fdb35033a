"""Manifests whose rows hold the media themselves."""

import pyarrow as pa
import pytest

from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.media_column import same_media_column

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ONE = [{"bytes": b"a", "path": "x"}, None, {"bytes": None, "path": "y"}, {"bytes": b"", "path": ""}]
ONE_URIS, ONE_BYTES = ["x", None, "y", ""], [[b"a"], [None], [None], [b""]]
LISTS = [[ONE[0], {"bytes": b"bc", "path": None}], None, [], [ONE[2], None]]


def normalized(kind, values, media_column=None, name="image"):
    column = pa.array(values, kind)
    table = pa.table({"id": range(len(values)), name: column, "note": ["n"] * len(values)})
    manifest = check_manifest_schema(table.schema, "m", media_column)
    assert manifest.media_column == name
    assert [field.name for field in manifest.user] == ["note"]
    whole = manifest.normalize(table)
    assert whole.schema == manifest.arrow
    # Slices and several chunks, as files are read.
    assert manifest.normalize(table.slice(1)).equals(whole.slice(1))
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert manifest.normalize(chunked).equals(whole)
    return manifest.form, whole[manifest.form].to_pylist(), whole["media_bytes"].to_pylist()


@pytest.mark.parametrize(
    "kind",
    [
        HUB,
        pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]),
        pa.struct([("path", pa.string_view()), ("bytes", pa.binary_view())]),
    ],
    ids=str,
)
def test_a_picture_of_the_hub(kind):
    assert normalized(kind, ONE) == ("uri", ONE_URIS, ONE_BYTES)


def test_pictures_without_paths():
    codes = pa.dictionary(pa.int32(), pa.binary())
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2), codes):
        expected = ("uri", [None, None], [[b"ab"], [None]])
        assert normalized(kind, [b"ab", None]) == expected
        assert normalized(kind, [b"ab", None], "jpg", "jpg") == expected
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.null())])
    assert normalized(kind, [{"bytes": b"a"}])[1] == [None]


@pytest.mark.parametrize("kind", [pa.list_(HUB), pa.large_list(HUB)], ids=str)
def test_several_pictures_of_the_hub(kind):
    form, media, data = normalized(kind, LISTS, name="images")
    assert form == "media"
    uris = [media and [one and one["uri"] for one in media] for media in media]
    assert uris == [["x", None], None, [], ["y", None]]
    assert data == [[b"a", b"bc"], None, [], [None, None]]


def test_media_with_bytes():
    kind = pa.list_(
        pa.struct([("bytes", pa.binary()), ("uri", pa.string()), ("type", pa.string())])
    )
    values = [[{"bytes": b"a", "uri": None, "type": "image"}, {"uri": "u"}], None]
    form, media, data = normalized(kind, values, name="media")
    assert form == "media"
    assert media[0][0] == {"type": "image", "uri": None, "start_s": None, "end_s": None}
    assert (media[0][1]["uri"], data) == ("u", [[b"a", None], None])


def columns(media_column=None, **kinds):
    schema = pa.schema({"id": pa.string(), **kinds})
    return check_manifest_schema(schema, "m", media_column)


def test_which_column_holds_the_media():
    assert columns(uri=pa.string(), image=HUB).media_column is None
    assert columns(image=HUB, thumbnail=HUB, media_column="thumbnail").media_column == "thumbnail"
    assert columns(picture=HUB, image=pa.binary()).media_column == "picture"
    assert columns(jpg=pa.binary(), media_column="jpg").form == "uri"


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"image": HUB, "thumbnail": HUB}, "found 2 columns that hold media (image, thumbnail)"),
        ({"embedding": pa.binary()}, "no column 'uri'"),
        ({"image": pa.string()}, "no column 'uri'"),
        ({"image": HUB, "uri": pa.string(), "media_column": "image"}, "found both the column"),
        ({"image": HUB, "media_column": "img"}, "names column 'img', the columns are: id, image"),
        ({"jpg": pa.string(), "media_column": "jpg"}, "of type string, expected binary, struct<"),
    ],
)
def test_what_cannot_be_chosen(kinds, words):
    with pytest.raises(JobError) as error:
        columns(**kinds)
    assert words in str(error.value)


def test_a_media_column_is_found_beside_files_that_have_no_value_in_it():
    hub = pa.schema([("id", pa.string()), ("image", HUB)])
    null = pa.schema([("id", pa.string()), ("image", pa.null())])
    for wanted in (None, "image"):
        found = same_media_column({"a": null, "b": hub}, wanted, None)
        assert found == {"a": hub, "b": hub}
    begun = check_manifest_schema(hub, "m")
    grown = same_media_column({"a": null}, None, begun.media_field)["a"]
    begun.check_holds(check_manifest_schema(grown, "m"), "m")
    assert same_media_column({"a": null}, None, None) == {"a": null}
    text = pa.schema([("id", pa.string()), ("image", pa.string())])
    assert same_media_column({"a": text, "b": hub}, None, None) == {"a": text, "b": hub}


def test_lists_and_single_media_are_refused_together():
    one, several = columns(images=HUB), columns(images=pa.list_(HUB))
    with pytest.raises(JobError, match="a: column 'images' holds one medium per row, expected li"):
        several.merged(one, "a", "b")
