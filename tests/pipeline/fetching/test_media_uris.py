"""Every kind of address that a row may have for a medium: data URIs, paths and object keys."""

import base64
import os
from urllib.parse import quote

import pytest

from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.fetcher import Fetcher
from mediamill.pipeline.fetching.media_uris import same_medium, shortened, shown
from mediamill.pipeline.stages.fetch import fetch
from mediamill.schemas.errors import RowError
from tests.pipeline.fetching.rules import fetch_rules

DATA = bytes(range(256)) * 3 + b"\xfb\xff"
BASE64 = base64.b64encode(DATA).decode()
URL_SAFE = base64.urlsafe_b64encode(DATA).decode()

DATA_URIS = {
    "plain": f"data:image/png;base64,{BASE64}",
    "no type": f"data:;base64,{BASE64}",
    "upper case": f"DATA:IMAGE/PNG;BASE64,{BASE64}",
    "mixed case": f"dAtA:image/png;Base64,{BASE64}",
    "parameters": f"data:image/png;charset=utf-8;name=a.png;base64,{BASE64}",
    "parameter behind": f"data:image/png;base64;name=a.png,{BASE64}",
    "space before base64": f"data:image/png; base64,{BASE64}",
    "no padding": f"data:image/png;base64,{BASE64.rstrip('=')}",
    "url-safe": f"data:image/png;base64,{URL_SAFE}",
    "url-safe, no padding": f"data:image/png;base64,{URL_SAFE.rstrip('=')}",
    "lines": "data:image/png;base64," + "\r\n".join(BASE64[i : i + 76] for i in range(0, 1100, 76)),
    "spaces": "data:image/png;base64, " + " ".join(BASE64) + " ",
    "percent": f"data:image/png;base64,{quote(BASE64, safe='')}",
    "percent padding": f"data:image/png;base64,{BASE64.replace('=', '%3D')}",
    "white space around": f" \ndata:image/png;base64,{BASE64}\n",
    "fragment": f"data:image/png;base64,{BASE64}#page=1",
    "slashes": f"data://image/png;base64,{BASE64}",
    "not base64": f"data:image/png,{quote(DATA, safe='')}",
}
NOT_DATA = {
    "data:image/png;base64": "fetch_failed",
    "data:": "fetch_failed",
    "data:x" + "y" * 100_000: "fetch_failed",
    "data:image/png;base64,": "media_empty",
    "data:,": "media_empty",
    "data:;base64,=": "media_empty",
    "data:;base64,A": "fetch_failed",
    "data:;base64,AAAAA": "fetch_failed",
    "data:;base64,AA=A": "fetch_failed",
    "data:;base64,AA==AA==": "fetch_failed",
    "data:;base64,AA===": "fetch_failed",
    "data:;base64,A*AA": "fetch_failed",
    "data:;base64,\u00e9AAA": "fetch_failed",
    "data:;base64,A\0AA": "fetch_failed",
    "data:;base64," + "A" * 140_000: "fetch_too_large",
    "data:," + "A" * 100_001: "fetch_too_large",
}


@pytest.fixture
def rules(tmp_path):
    return fetch_rules(100_000, 5.0, str(tmp_path), pause_s=0.01)


def failure(uri, rules):
    with pytest.raises(RowError) as error:
        fetch(uri, rules)
    assert len(error.value.message) < 2000
    return error.value


@pytest.mark.parametrize("kind", DATA_URIS)
def test_data_uris(rules, kind):
    assert fetch(DATA_URIS[kind], rules) == DATA
    assert same_medium(DATA_URIS[kind], DATA_URIS["plain"], "/")


@pytest.mark.parametrize("uri", NOT_DATA, ids=lambda uri: f"{uri[:30]!r}-{len(uri)}")
def test_what_is_no_data_uri(rules, uri):
    assert failure(uri, rules).code == NOT_DATA[uri]


def test_data_uris_count_in_the_budget_and_go_to_files_like_all_media(tmp_path):
    rules = fetch_rules(10**6, 5.0, str(tmp_path), memory_bytes=1000, ahead_bytes=10**6)
    fetcher = Fetcher(rules)
    for size in (999, 600_000):
        uri = "data:;base64," + base64.b64encode(os.urandom(size)).decode()
        medium = fetcher.fetch(uri, Reservation(fetcher.budget))
        assert (medium.size, medium.path is not None) == (size, size > 1000)
        assert fetcher.budget.held == size
        del medium
        assert fetcher.budget.held == 0
        medium, whole = fetcher.fetch_partial(uri, Reservation(fetcher.budget))
        assert (medium.size, whole) == (size, True)
        del medium


def test_data_uris_are_a_scheme_that_a_job_may_leave_out(tmp_path):
    rules = fetch_rules(10**6, 5.0, str(tmp_path), schemes=("file", "https"))
    error = failure(DATA_URIS["plain"], rules)
    assert error.code == "fetch_denied"
    assert error.message.startswith("data:image/png;base64,...(1,0")


def test_a_long_data_uri_is_shown_by_its_beginning():
    uri = "data:image/png;base64," + "A" * 1_000_000
    assert shown(uri) == shortened(uri) == "data:image/png;base64,...(1,000,022 characters)"
    assert shortened("data:,short") == "data:,short"
    assert len(shown("data:" + "x" * 10**6)) < 200
    assert len(shown("/x" * 10**6)) < 600
    assert shortened("/x" * 10**6) == "/x" * 10**6


# Files

NAMES = [
    *("a b.png", "a%20b.png", "a#b.png", "a?b.png", "a::b.png", "a:b.png", "s3:a.png", "é.png"),
    *("e\u0301.png", "a*b[c].png", "a\\b.png", "a\nb.png", "trail ", " lead", "new\n", "~", "100%"),
    *("C:\\a.png", "http", "data", "{a}", "a|b;c&d'e\"f", "\x01", "\U0001f600"),
]


@pytest.mark.parametrize("name", NAMES)
def test_files_of_any_name(tmp_path, rules, name):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / name).write_bytes(DATA)
    spellings = [
        *(f"{folder}/{name}", f"x/{name}", f"./x/../x/{name}", f"{tmp_path}//x///{name}"),
        *(f"file://{folder}/{name}", f"FILE://localhost{folder}/{name}", f"file:{folder}/{name}"),
        (folder / name).as_uri(),
        f"\t{(folder / name).as_uri()}",
    ]
    for spelling in spellings:
        assert fetch(spelling, rules) == DATA
        assert same_medium(spelling, f"x/{name}", str(tmp_path))
    assert not same_medium(f"x/{name}", f"y/{name}", str(tmp_path))


def test_a_real_name_with_a_percent_sign_wins_over_the_decoded_one(tmp_path, rules):
    (tmp_path / "a b.png").write_bytes(b"decoded")
    assert fetch(f"file://{tmp_path}/a%20b.png", rules) == b"decoded"
    (tmp_path / "a%20b.png").write_bytes(b"as it is")
    assert fetch(f"file://{tmp_path}/a%20b.png", rules) == b"as it is"
    assert fetch("a%20b.png", rules) == b"as it is"


@pytest.mark.parametrize(
    ("uri", "code", "words"),
    [
        ("C:\\pictures\\a.png", "fetch_not_found", "path is one of Windows"),
        ("c:/pictures/a.png", "fetch_not_found", "path is one of Windows"),
        ("\\\\server\\share\\a.png", "fetch_not_found", "path is one of Windows"),
        ("pictures\\2024\\a.png", "fetch_not_found", "path is one of Windows"),
        ("~/a.png", "fetch_not_found", "~ is not expanded"),
        ("a.png\n", "fetch_not_found", "white space"),
        (" a.png", "fetch_not_found", "white space"),
        ("../a.png", "fetch_denied", "fetch.roots"),
        ("file:a.png", "fetch_denied", "without a slash"),
        ("file://server/a.png", "fetch_denied", "the host 'server'"),
        ("file:///a\0", "fetch_denied", "NUL"),
        ("file:///a%00", "fetch_denied", "NUL"),
        ("a\0b", "fetch_denied", "NUL"),
        ("", "fetch_not_found", "its uri is empty"),
        ("ftp://a/b.png", "fetch_denied", "the scheme 'ftp'"),
        ("zip://a.png::https://a.test/b.zip", "fetch_denied", "the scheme"),
        ("s3://bucket", "fetch_not_found", "a bucket, expected an object"),
        ("s3://bucket/", "fetch_not_found", "a bucket, expected an object"),
        ("x" * 100_000, "fetch_not_found", "no such file"),
        ("x" * 100_000 + "://a", "fetch_denied", "the scheme"),
        ("/etc/" + "x/" * 50_000, "fetch_denied", "fetch.roots"),
    ],
    ids=lambda value: f"{value[:24]!r}",
)
def test_addresses_that_name_no_file_here(rules, uri, code, words):
    error = failure(uri, rules)
    assert error.code == code
    assert words in error.message


# Objects

KEYS = [
    *("a//b.png", "/lead.png", "//lead.png", "a::b.png", "s3://x::y.png", "trail/", "trail//", "/"),
    *("q?b.png", "h#b.png", "p%20b.png", "p%2Fb.png", "st*r.png", "[ab].png", "pl+us.png", "a b"),
    *(" lead", "trail ", "tab\tx", "ctl\x01x", "\x7fdel", "é.png", "e\u0301.png", "\U0001f600"),
    *("a/../b.png", "../up.png", "a/./b.png", "..", ".", "~/x", "C:\\x.png", "{a}", "a&b=c;d"),
    *("a'b\"c", "data:x.png", "file:///x", "a@b:c.png", "^`|<>.png", "\u2028x", "\ufeffbom", "%zz"),
    *("a?versionId", "x" * 1024, "é" * 512),
]


@pytest.fixture(scope="module")
def client(s3):
    import botocore.session

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    return botocore.session.get_session().create_client("s3", endpoint_url=endpoint)


@pytest.fixture(scope="module")
def object_fetcher():
    return Fetcher(fetch_rules(100_000, 20.0, "/", pause_s=0.01))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key[:20]!r}")
def test_objects_of_any_key(client, object_fetcher, key):
    content = b"content of " + key.encode()
    client.put_object(Bucket="mill", Key=key, Body=content)
    try:
        for scheme in ("s3", "S3", "s3a", "s3n"):
            uri = f"{scheme}://mill/{key}"
            medium = object_fetcher.fetch(uri, Reservation(object_fetcher.budget))
            assert medium.data.tobytes() == content
            assert same_medium(uri, f"s3://mill/{key}", "/")
    finally:
        client.delete_object(Bucket="mill", Key=key)


def test_the_version_of_an_object(client, object_fetcher):
    client.create_bucket(Bucket="versions")
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    versions = [
        client.put_object(Bucket="versions", Key="a?b", Body=body)["VersionId"]
        for body in (b"old", b"new")
    ]
    for version, content in zip(versions, (b"old", b"new"), strict=True):
        uri = f"s3://versions/a?b?versionId={version}"
        medium = object_fetcher.fetch(uri, Reservation(object_fetcher.budget))
        assert medium.data.tobytes() == content
