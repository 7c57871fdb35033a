"""Members of archives are read by their bytes, whatever the storage, and nothing else is."""

import zlib

import fsspec
import pytest

from mediamill.model.urls import redact
from mediamill.pipeline.fetching.fetcher import fetch
from mediamill.pipeline.fetching.member_uri import MemberUri, parse_member_uri
from mediamill.schemas.errors import RowError
from tests.pipeline.fetching.rules import fetch_rules
from tests.servers.faulty_http import faulty_http

WHOLE = bytes(range(256)) * 64
URL = "s3://b/a:0;b.tar"


def deflated(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("uri", "member"),
    [
        (f"range:0-0:{URL}", MemberUri(URL, 0, 0)),
        (f"RANGE:5-700:{URL}", MemberUri(URL, 5, 700)),
        (f"range:5-9;deflate;size=0:{URL}", MemberUri(URL, 5, 9, 0)),
        ("range:5-9:/a\nb", MemberUri("/a\nb", 5, 9)),
        (URL, None),
        ("ranges/a.jpg", None),
    ],
)
def test_the_form(uri, member):
    assert parse_member_uri(uri) == member
    if member is not None:
        assert parse_member_uri(str(member)) == member


@pytest.mark.parametrize(
    "uri",
    [
        "range:", "range:1:a", "range:-1-5:a", "range:5-4:a", "range:1-5:", "range:1-5;deflate:a",
        "range:1-5;size=3:a", "range:1-5;gzip:a", "range: 1-5:a", "range:1-5:range:1-2:a",
        "range:٣-٤:a", f"range:1-{'9' * 30}:a",
    ],
)  # fmt: skip
def test_another_form_is_denied(uri, tmp_path):
    with pytest.raises(RowError) as error:
        fetch(uri, fetch_rules(10**6, 5.0, str(tmp_path)))
    assert error.value.code == "fetch_denied"


def check_members(url, rules):
    assert fetch(f"range:0-0:{url}", rules) == WHOLE[:1]
    assert fetch(f"range:300-9999:{url}", rules) == WHOLE[300:10000]
    last = len(WHOLE) - 1
    assert fetch(f"range:{last}-{last}:{url}", rules) == WHOLE[last:]
    for first, end in ((5, last + 1), (last + 1, last + 1), (10**12, 10**12)):
        with pytest.raises(RowError) as error:
            fetch(f"range:{first}-{end}:{url}", rules)
        assert error.value.code in ("fetch_failed", "fetch_not_found"), error.value


def test_members_of_a_local_file(tmp_path):
    (tmp_path / "a.tar").write_bytes(WHOLE)
    rules = fetch_rules(12_000, 5.0, str(tmp_path))
    check_members(tmp_path / "a.tar", rules)
    check_members("a.tar", rules)
    check_members((tmp_path / "a.tar").as_uri(), rules)
    with pytest.raises(RowError, match="found at least 12001 bytes"):
        fetch(f"range:0-12000:{tmp_path}/a.tar", rules)
    for outside in ("/etc/passwd", "../a", "ftp://a/b"):
        with pytest.raises(RowError) as error:
            fetch(f"range:0-1:{outside}", rules)
        assert error.value.code == "fetch_denied"


def test_members_of_an_object(s3, tmp_path):
    fsspec.filesystem("s3", use_listings_cache=False).pipe_file(f"{s3}/members/a.tar", WHOLE)
    check_members(f"{s3}/members/a.tar", fetch_rules(12_000, 5.0, str(tmp_path), tries=1))
    with pytest.raises(RowError, match="found the scheme 's3', expected one of https"):
        fetch(f"range:0-1:{s3}/members/a.tar", fetch_rules(99, 5.0, "", schemes=("https",)))


@pytest.mark.parametrize(
    ("data", "size", "reason"),
    [
        (WHOLE, len(WHOLE), None),
        (WHOLE, len(WHOLE) - 1, "becomes more than"),
        (WHOLE, len(WHOLE) + 1, f"becomes {len(WHOLE)} bytes"),
        (bytes(2 * 10**7), 2 * 10**7, "expected at most limits.max_bytes"),
        (bytes(2 * 10**7), 1000, "becomes more than 1000 bytes"),
    ],
)
@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_deflated_members(tmp_path, data, size, reason, memory_bytes):
    packed = deflated(data)
    (tmp_path / "a.zip").write_bytes(b"head" + packed + b"tail")
    rules = fetch_rules(10**7, 5.0, str(tmp_path), memory_bytes=memory_bytes)
    uri = f"range:4-{3 + len(packed)};deflate;size={size}:a.zip"
    if reason is None:
        assert fetch(uri, rules) == data
    else:
        with pytest.raises(RowError, match=reason):
            fetch(uri, rules)


def test_bytes_that_are_cut_or_not_deflated_are_an_error(tmp_path):
    packed = deflated(WHOLE)
    (tmp_path / "a.zip").write_bytes(packed)
    (tmp_path / "b.zip").write_bytes(b"\xff" * 100)
    rules = fetch_rules(10**6, 5.0, str(tmp_path))
    for name, last in (("a.zip", len(packed) - 3), ("b.zip", 99)):
        with pytest.raises(RowError) as error:
            fetch(f"range:0-{last};deflate;size={len(WHOLE)}:{name}", rules)
        assert error.value.code == "decode_corrupt"


def test_secrets_of_the_whole_file_are_hidden():
    shown = redact("range:0-9;deflate;size=3:https://u:p@h/a.zip?sig=s")
    assert shown == "range:0-9;deflate;size=3:https://h/a.zip"


def test_members_over_http(tmp_path):
    """One range request for each; of a server that ignores ranges, the member alone is kept."""
    (tmp_path / "a.tar").write_bytes(WHOLE)
    rules = fetch_rules(12_000, 5.0, str(tmp_path), private_addresses=True, pause_s=0.01)
    with faulty_http(tmp_path) as site:
        check_members(f"{site.url}/a.tar", rules)
        assert site.ranges[1] == ("/a.tar", "bytes=300-9999")
        site.faults.plan("/a.tar", ["no_range", "cut", "reset", "503", "no_range"])
        assert fetch(f"range:300-9999:{site.url}/a.tar", rules) == WHOLE[300:10000]
        assert fetch(f"range:300-9999:{site.url}/a.tar", rules) == WHOLE[300:10000]
        site.faults.plan("/a.tar", ["no_range"] * 9)
        with pytest.raises(RowError, match="sends only whole files"):
            fetch(f"range:12500-12600:{site.url}/a.tar", rules)


def test_members_in_spite_of_faults(tmp_path):
    (tmp_path / "a.tar").write_bytes(WHOLE)
    rules = fetch_rules(10**6, 20.0, str(tmp_path), private_addresses=True, pause_s=0.01, tries=20)
    kinds = ("500", "503", "reset", "cut", "short_range", "no_range", "redirect")
    with faulty_http(tmp_path, seed=3, rate=0.4, kinds=kinds) as site:
        for first in range(0, 12_000, 400):
            data = fetch(f"range:{first}-{first + 3999}:{site.url}/a.tar", rules)
            assert data == WHOLE[first : first + 4000]
        assert site.faults.total
