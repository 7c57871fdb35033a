"""Which addresses a row's http(s) URL may reach: none of this machine or its networks."""

import ipaddress
import socket
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mediamill.pipeline.fetching.addresses import (
    AddressRules,
    check_host,
    follow_redirect,
    is_public,
    parse_url,
    resolve_addresses,
)
from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.fetcher import Fetcher
from mediamill.pipeline.fetching.http_source import HttpClient
from mediamill.pipeline.stages.fetch import fetch
from mediamill.schemas.errors import RowError
from tests.pipeline.fetching.rules import fetch_rules
from tests.servers.faulty_http import faulty_http

PUBLIC = "93.184.216.34"
NAMES = {
    "good.test": [PUBLIC],
    "xn--bcher-kva.test": [PUBLIC],
    "loop.test": ["127.0.0.1"],
    "six.test": ["::1"],
    "mixed.test": [PUBLIC, "127.0.0.1"],
    "mixed-six.test": [PUBLIC, "fe80::1%eth0"],
    "mapped.test": ["::ffff:10.0.0.1"],
    "localhost": ["127.0.0.1", "::1"],
    "metadata.google.internal": ["169.254.169.254"],
    "nobody.test": [],
}
# Of this machine, its networks or nobody; {p} is a port where this test listens.
REFUSED = [
    *("127.0.0.1:{p}", "127.1.2.3:{p}", "127.0.0.1.:{p}", "0.0.0.0:{p}", "localhost:{p}"),
    *("LOCALHOST:{p}", "localhost.:{p}", "loop.test:{p}", "LOOP.test.:{p}", "six.test:{p}"),
    *("mixed.test:{p}", "mixed-six.test:{p}", "mapped.test:{p}", "metadata.google.internal"),
    # Other ways to write 127.0.0.1
    *("127.1:{p}", "127.0.1:{p}", "2130706433:{p}", "017700000001:{p}", "0x7f000001:{p}"),
    *("0177.0.0.1:{p}", "0x7f.0.0.1:{p}", "127.0.0.01:{p}", "0x7f.1:{p}", "127.0.0.0x1:{p}"),
    *("００１２７.0.0.1:{p}", "１２７.０.０.１:{p}", "127。0。0。1:{p}", "①②⑦.⓪.⓪.①:{p}", "0:{p}"),
    *("127.0.0.1%2e:{p}", "%31%32%37.0.0.1:{p}", "127%2E0%2E0%2E1:{p}", "00000000177.1:{p}"),
    *(
        "ｌｏｃａｌｈｏｓｔ:{p}",
        "localho\u017ft:{p}",
        "l\u200bocalhost:{p}",
        "4294967296:{p}",
        "1.:{p}",
    ),
    # IPv6, also with IPv4 inside
    *("[::1]:{p}", "[::]:{p}", "[0:0:0:0:0:0:0:1]:{p}", "[::ffff:127.0.0.1]:{p}"),
    *("[::ffff:7f00:1]:{p}", "[::127.0.0.1]:{p}", "[64:ff9b::7f00:1]:{p}", "[64:ff9b::10.0.0.1]"),
    *("[64:ff9b:1::1]:{p}", "[2002:7f00:1::]:{p}", "[2001:0:0:0:0:0:80ff:fffe]:{p}", "[::1%25lo]"),
    *("[fe80::1]:{p}", "[fe80::1%25eth0]:{p}", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]"),
    *("[2001:db8::1]", "[100::1]", "[fec0::1]", "[3fff::1]", "[::ffff:169.254.169.254]", "[1::]"),
    # Private, shared, reserved, and clouds' metadata
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("100.127.255.255", "100.100.100.200", "169.254.169.254", "169.254.170.2", "168.63.129.16"),
    *("192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1", "0.1.2.3"),
    # Who is the host?
    *(
        "good.test@127.0.0.1:{p}",
        "good.test:80@127.0.0.1:{p}",
        "a@b@127.0.0.1:{p}",
        "@127.0.0.1:{p}",
    ),
    *("127.0.0.1:{p}#@good.test", "127.0.0.1:{p}?@good.test", "127.0.0.1:{p}\\@good.test"),
    *("127.0.0.1:{p} good.test", "good.test@127.0.0.1:{p}@loop.test"),
    *(
        "good.test%40127.0.0.1:{p}",
        "good.test%00.127.0.0.1:{p}",
        "127.0.0.1:{p}\t",
        "\n127.0.0.1:{p}",
    ),
    *("", ":80", "[", "[]", "[::1", "::1]:{p}", "a..b", "-", "good.test:0", "good.test:99999"),
    *(
        "good.test:80:80",
        "good.test:8o",
        "[v1.a]",
        "[127.0.0.1]:{p}",
        "*",
        "nobody.test",
        "x" * 254,
    ),
]


class Dial:
    """Connects to the site instead of any public address; `seen` has the requested addresses."""

    def __init__(self, port):
        self.port, self.seen = port, []

    def __call__(self, address, timeout):
        self.seen.append(address[0])
        return socket.create_connection(("127.0.0.1", self.port), timeout)


def resolve(name, port):
    if name not in NAMES:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")
    return NAMES[name]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "a").write_bytes(b"content")
    with faulty_http(folder) as server:
        yield server


@pytest.fixture
def dial(site):
    return Dial(int(site.url.rpartition(":")[2]))


@pytest.fixture(scope="module")
def listener():
    """A port of this machine, on all its addresses, and who came there."""
    came = []
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        server.settimeout(0.05)
        stop = threading.Event()

        def accept():
            while not stop.is_set():
                try:
                    connection, address = server.accept()
                except TimeoutError:
                    continue
                came.append(address)
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], came
        stop.set()
        thread.join()


def rules(tmp_path, **changes):
    return fetch_rules(10**6, 5.0, str(tmp_path), pause_s=0.001, **changes)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_request_is_sent_to_a_refused_host(tmp_path, listener, scheme):
    port, came = listener
    fetcher = Fetcher(rules(tmp_path), HttpClient(AddressRules(), resolve))
    codes = {}
    for authority in REFUSED:
        with pytest.raises(RowError) as error:
            fetcher.fetch(f"{scheme}://{authority.format(p=port)}/a", Reservation(fetcher.budget))
        codes[authority] = error.value.code.value
    assert {one for one, code in codes.items() if code != "fetch_denied"} == {"nobody.test"}
    assert not came


def test_the_listener_sees_a_request(tmp_path, listener):
    port, came = listener
    with pytest.raises(RowError, match="connection broke"):
        fetch(f"http://[::1]:{port}/a", rules(tmp_path, private_addresses=True, tries=1))
    assert len(came) == 1
    came.clear()


@pytest.mark.parametrize(
    "location",
    [
        *(f"http://{one}/a" for one in ("127.0.0.1", "loop.test", "169.254.169.254", "2130706433")),
        *("//127.0.0.1/a", "//[::1]/a", "http:\\\\127.0.0.1/a", "https://mixed.test/a"),
        *(
            "file:///etc/passwd",
            "ftp://good.test/a",
            "gopher://127.0.0.1/",
            "javascript:a",
            "http://",
        ),
        *(
            "http://good.test@127.0.0.1/a",
            "http://[::1%25lo]/",
            "http://127.1/a",
            "\thttp://10.0.0.1",
        ),
    ],
)
def test_redirects_are_checked_like_the_first_url(tmp_path, site, dial, location):
    site.answers["/away"] = (302, {"Location": location}, b"")
    with pytest.raises(RowError) as error:
        fetch("http://good.test/away", rules(tmp_path), HttpClient(AddressRules(), resolve, dial))
    assert error.value.code == "fetch_denied"
    assert dial.seen == [PUBLIC]


def test_at_most_five_redirects_are_followed(tmp_path, site, dial):
    client = HttpClient(AddressRules(), resolve, dial)
    for hop in range(7):
        site.answers[f"/hop{hop}"] = (307, {"Location": f"hop{hop + 1}"}, b"")
    site.answers["/hop7"] = (200, {}, b"there")
    assert fetch("http://good.test/hop2", rules(tmp_path), client) == b"there"
    with pytest.raises(RowError, match="more than 5 redirects"):
        fetch("http://good.test/hop1", rules(tmp_path), client)


def test_a_login_is_sent_to_its_own_origin_only(tmp_path, site, dial):
    client = HttpClient(AddressRules(), resolve, dial)
    site.answers["/same"] = (302, {"Location": "/a"}, b"")
    site.answers["/other"] = (302, {"Location": "http://bücher.test/a"}, b"")
    site.answers["/given"] = (302, {"Location": "http://me:there@bücher.test/a"}, b"")
    for path, sent in (("same", True), ("other", False), ("given", False)):
        assert fetch(f"http://me:word@good.test/{path}", rules(tmp_path), client) == b"content"
        assert ("Authorization" in site.headers["/a"]) == sent


def test_connections_go_to_the_checked_address(tmp_path, site):
    """A name whose address changes after the check: it is looked up once for a connection."""
    answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]])
    asked = []

    def rebinding(name, port):
        asked.append(name)
        return next(answers)

    client = HttpClient(AddressRules(private=True), rebinding)
    port = site.url.rpartition(":")[2]
    before = site.requests
    assert fetch(f"http://rebind.test:{port}/a", rules(tmp_path), client) == b"content"
    assert site.requests == before + 1  # the server is not on 127.0.0.2
    assert asked == ["rebind.test"]
    assert site.headers["/a"]["Host"] == f"rebind.test:{port}"


@pytest.mark.parametrize(
    ("host", "patterns", "allowed"),
    [
        ("good.test", ["good.test"], True),
        ("good.test", ["GOOD.Test."], True),
        ("a.good.test", ["*.good.test"], True),
        ("a.b.good.test", ["*.good.test"], True),
        ("good.test", ["*.good.test"], False),
        ("evilgood.test", ["*.good.test"], False),
        ("good.test.evil.test", ["good.test", "*.good.test"], False),
        ("xn--bcher-kva.test", ["bücher.test"], True),
        ("a.xn--bcher-kva.test", ["*.bücher.test"], True),
        ("a", ["[a]"], False),
        ("ab", ["a?"], False),
        ("2606:2800:220::1", ["[2606:2800:220::1]"], True),
        ("good.test", [], False),
    ],
)
def test_host_patterns(host, patterns, allowed):
    list_only = AddressRules(hosts=tuple(patterns))
    if allowed:
        check_host(host, list_only)
    else:
        with pytest.raises(RowError, match=r"fetch\.hosts"):
            check_host(host, list_only)


def test_hosts_are_checked_on_each_hop(tmp_path, site, dial):
    client = HttpClient(AddressRules(hosts=("good.test",)), resolve, dial)
    site.answers["/list"] = (302, {"Location": "http://bücher.test/a"}, b"")
    assert fetch("http://GOOD.test./a", rules(tmp_path), client) == b"content"
    with pytest.raises(RowError, match=r"xn--bcher-kva\.test, expected one of fetch\.hosts"):
        fetch("http://good.test/list", rules(tmp_path), client)
    assert set(dial.seen) == {PUBLIC}


def test_a_redirect_from_https_to_http_is_refused():
    with pytest.raises(RowError, match="https to stay"):
        follow_redirect(parse_url("https://good.test/a"), "http://good.test/a")
    assert (
        follow_redirect(parse_url("https://good.test/a/b?c"), "../d?e#f").url
        == "https://good.test/d?e"
    )


def test_a_signed_path_is_sent_unchanged():
    signed = "/a%2Fb/%C3%A9?X-Amz-Signature=a%2Bb&x=/+%20~"
    assert parse_url(f"https://good.test{signed}").path == signed
    assert parse_url("https://good.test/é?ü").path == "/%C3%A9?%C3%BC"
    assert parse_url("https://good.test").path == "/"


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_public_only_if_python_says_so(address):
    """Python's own registry as the oracle; ours refuses a little more."""
    if is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@given(st.ip_addresses(v=6))
@example(ipaddress.ip_address("64:ff9b::5db8:d822"))
@example(ipaddress.ip_address("2606:4700::1111"))
def test_an_ipv6_address_is_public_only_if_python_says_so(address):
    if is_public(str(address)) and address not in ipaddress.ip_network("64:ff9b::/96"):
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_ipv4_embedded_in_ipv6_is_public_if_the_ipv4_address_is(address):
    for inside in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert is_public(inside) == is_public(str(address))


def test_public_addresses_are_allowed():
    for one in (PUBLIC, "1.1.1.1", "2606:4700::1111", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1"):
        assert is_public(one)
    target = parse_url("http://[2606:4700::1111]:8080/a")
    assert resolve_addresses(target, AddressRules(), resolve) == ["2606:4700::1111"]
    assert target.host_header == "[2606:4700::1111]:8080"
