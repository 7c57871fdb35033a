"""http(s) URLs are read as browsers read them (https://url.spec.whatwg.org)."""

import pytest

from mediamill.pipeline.fetching.addresses import AddressRules, follow_redirect, parse_url
from mediamill.pipeline.fetching.http_source import HttpClient
from mediamill.pipeline.stages.fetch import fetch
from mediamill.schemas.errors import RowError
from tests.pipeline.fetching.rules import fetch_rules
from tests.servers.faulty_http import faulty_http

# What a row says, and what is requested: as Firefox's and Chrome's `new URL(...)` say.
URLS = [
    ("https://a.test", "https://a.test/"),
    ("HTTPS://A.TEST/B", "https://a.test/B"),
    ("https://a.test/b c.png", "https://a.test/b%20c.png"),
    ("https://a.test/b%20c.png", "https://a.test/b%20c.png"),
    ("https://a.test/b+c.png", "https://a.test/b+c.png"),
    ("  https://a.test/b.png \n", "https://a.test/b.png"),
    ("\x00\x1fhttps://a.test/b\x0b", "https://a.test/b"),
    ("https://a.test/b\n.p\tn\rg", "https://a.test/b.png"),
    ("ht\ntps://a.test/b", "https://a.test/b"),
    ("https://a.test\\b\\c", "https://a.test/b/c"),
    ("https:\\\\a.test/b", "https://a.test/b"),
    ("https:/a.test/b", "https://a.test/b"),
    ("https:a.test/b", "https://a.test/b"),
    ("https://a.test/b#c", "https://a.test/b"),
    ("https://a.test#b/c?d", "https://a.test/"),
    ("https://a.test?b", "https://a.test/?b"),
    ("https://a.test/b?", "https://a.test/b?"),
    ("https://a.test/b?c d\\e", "https://a.test/b?c%20d\\e"),
    ("https://a.test/b?c=d#e f", "https://a.test/b?c=d"),
    ("https://a.test/b?\"'<>`", "https://a.test/b?%22%27%3C%3E`"),
    ("https://a.test/\"<>^`{}|'", "https://a.test/%22%3C%3E%5E%60%7B%7D|'"),
    ("https://a.test/b[1].png", "https://a.test/b[1].png"),
    ("https://a.test/100%.png", "https://a.test/100%.png"),
    ("https://a.test/%zz%2", "https://a.test/%zz%2"),
    ("https://a.test/é.png?ü", "https://a.test/%C3%A9.png?%C3%BC"),
    ("https://a.test/e\u0301.png", "https://a.test/e%CC%81.png"),
    ("https://a.test/\U0001f600", "https://a.test/%F0%9F%98%80"),
    ("https://a.test/b/../c", "https://a.test/c"),
    ("https://a.test/../../c", "https://a.test/c"),
    ("https://a.test/b/./c/.", "https://a.test/b/c/"),
    ("https://a.test/b/%2e%2E/c", "https://a.test/c"),
    ("https://a.test/b/..", "https://a.test/"),
    ("https://a.test/...", "https://a.test/..."),
    ("https://a.test//b//c", "https://a.test//b//c"),
    ("https://a.test/b::c", "https://a.test/b::c"),
    ("https://a.test/https://b.test/c", "https://a.test/https://b.test/c"),
    ("https://a.test:443/b", "https://a.test/b"),
    ("http://a.test:443/b", "http://a.test:443/b"),
    ("https://a.test:/b", "https://a.test/b"),
    ("https://a.test:0080/b", "https://a.test:80/b"),
    ("https://a.test./b", "https://a.test/b"),
    ("https://%61.test/b", "https://a.test/b"),
    ("https://b\u00fccher.test/b", "https://xn--bcher-kva.test/b"),
    ("https://BU\u0308CHER.test/b", "https://xn--bcher-kva.test/b"),
    ("https://fa\u00df.test/b", "https://xn--fa-hia.test/b"),
    ("https://\u2603.test/b", "https://xn--n3h.test/b"),
    ("https://\uff41\u3002test/b", "https://a.test/b"),
    ("https://a_b.test/b", "https://a_b.test/b"),
    ("https://u:p@a.test/b", "https://a.test/b"),
    ("https://u:p@w@a.test/b", "https://a.test/b"),
    ("https://a.test\\@b.test/c", "https://a.test/@b.test/c"),
    ("https://[2606:4700::1111]/b", "https://[2606:4700::1111]/b"),
]
NOT_URLS = [
    *("https://", "https:///a", "https:////a.test/b", "https://:80/a", "https://a b.test/c"),
    *("https://a.test:x/b", "https://a.test:99999/b", "https://a.test:0/", "https://[::1/b"),
    *(
        "https://a..test/b",
        "https://a%00b.test/",
        "https://a%40b.test/",
        "https://xn--\u00fc.test/",
    ),
    *("ftp://a.test/b", "//a.test/b", "/b", "https", ""),
]
# On the page https://u:p@a.test/b/c?d
REDIRECTS = [
    ("e", "https://a.test/b/e"),
    ("/e f", "https://a.test/e%20f"),
    ("../e", "https://a.test/e"),
    ("?e", "https://a.test/b/c?e"),
    ("#e", "https://a.test/b/c?d"),
    ("", "https://a.test/b/c?d"),
    ("//e.test/f", "https://e.test/f"),
    ("\\\\e.test\\f", "https://e.test/f"),
    (" https://e.test/f\t", "https://e.test/f"),
    ("https:e", "https://a.test/b/e"),
    ("https:/e", "https://a.test/e"),
    ("é", "https://a.test/b/%C3%A9"),  # as most servers send it
    ("\xe9", "https://a.test/b/%C3%A9"),
    ("e:f", None),
    ("javascript:e", None),
    ("http://a.test/e", None),
]


@pytest.mark.parametrize(("url", "requested"), URLS)
def test_urls_are_read_as_browsers_read_them(url, requested):
    assert parse_url(url).url == requested
    assert parse_url(requested).url == requested


@pytest.mark.parametrize("url", NOT_URLS)
def test_what_is_no_url_is_denied(url):
    with pytest.raises(RowError) as error:
        parse_url(url)
    assert error.value.code == "fetch_denied"


@pytest.mark.parametrize(("location", "expected"), REDIRECTS)
def test_redirects_are_read_as_browsers_read_them(location, expected):
    target = parse_url("https://u:p@a.test/b/c?d")
    sent = location if location == "\xe9" else location.encode().decode("latin-1")
    if expected is None:
        with pytest.raises(RowError):
            follow_redirect(target, sent)
        return
    redirected = follow_redirect(target, sent)
    assert redirected.url == expected
    assert (redirected.login is not None) == (redirected.host == "a.test")


def test_logins_are_decoded():
    assert parse_url("https://u:p%40w@a.test/").login == parse_url("https://u:p@w@a.test/").login
    assert parse_url("https://@a.test/").login == ""
    assert parse_url("https://a.test/@b").login is None


def test_such_urls_are_fetched_from_a_server(tmp_path):
    names = ["a b.png", "é.png", "100%.png", "q?r.png", "h#i.png", "a::b.png", "{x}.png", "c"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    rules = fetch_rules(10**6, 5.0, str(tmp_path), private_addresses=True, pause_s=0.01)
    with faulty_http(tmp_path) as site:
        port = site.url.rpartition(":")[2]
        for written, name in [
            ("a b.png", "a b.png"),
            ("a%20b.png#x", "a b.png"),
            (" \n", None),
            ("é.png", "é.png"),
            ("100%25.png", "100%.png"),
            ("q%3Fr.png", "q?r.png"),
            ("h%23i.png", "h#i.png"),
            ("a::b.png", "a::b.png"),
            ("{x}.png\t", "{x}.png"),
            ("x/..\\c", "c"),
        ]:
            if name is not None:
                for start in (f"{site.url}/", f"HTTP:\\\\127.0.0.1:{port}/", f"\n{site.url}/"):
                    assert fetch(start + written, rules) == name.encode()
        site.answers["/away"] = (302, {"Location": "a b.png"}, b"")
        assert fetch(f"{site.url}/away", rules) == b"a b.png"


@pytest.mark.parametrize(
    "url",
    [
        *(" https://u:SECRET@a.test/b", "https:\\\\u:SECRET@a.test\\b", "https:u:SECRET@a.test/b"),
        *("ht\ntps://u:SECRET@a.test/b", "https://u:x@SECRET@a.test/b?SECRET#SECRET"),
        *("https:/u:SECRET@a.test/b", "https:///u:SECRET@a.test/b"),
    ],
)
def test_no_spelling_shows_a_secret(tmp_path, url):
    def resolve(name, port):
        return ["10.0.0.1"]

    client = HttpClient(AddressRules(), resolve)
    with pytest.raises(RowError) as error:
        fetch(url, fetch_rules(10**6, 5.0, str(tmp_path)), client)
    assert error.value.code == "fetch_denied"
    assert "SECRET" not in error.value.message
