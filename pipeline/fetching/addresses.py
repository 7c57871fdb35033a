"""Parses an http(s) URL, and resolves its host to the addresses that a request may go to.

URLs are untrusted: they may name this machine, its network or its cloud's metadata service in many
disguises. Therefore a name is looked up once, all its addresses must be allowed, and the caller
connects to one of these addresses, not to the name.
"""

import base64
import contextlib
import fnmatch
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import unquote

import idna

from mediamill.pipeline.fetching.web_url import WebUrl, join_web_url, split_web_url
from mediamill.schemas.errors import ErrorCode, RowError

# A name and a port -> its addresses. Raises OSError.
Resolver = Callable[[str, int], Sequence[str]]

_DEFAULT_PORTS = {"http": 80, "https": 443}
# IANA's special-purpose registries, written out because `is_global` differs between Pythons.
_BLOCKED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; Linux connects to itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers; some clouds' metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # the host of an Azure machine, although the range is public
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")  # all that IANA has allocated
_BLOCKED_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo included
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")  # IPv4 as seen from a network without IPv4
_HOST_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_HOST_AND_PORT = re.compile(
    r"(?P<host>\[[^\[\]]*\]|[^\[\]:]+)(?::(?P<port>[0-9]{0,5}))?", re.ASCII | re.DOTALL
)


@dataclass(frozen=True)
class AddressRules:
    """Which hosts and addresses requests may go to.

    hosts: patterns, in which * matches any text; None allows every host.
    private: whether addresses of this machine and of private networks are allowed.
    """

    hosts: tuple[str, ...] | None = None
    private: bool = False


@dataclass(frozen=True)
class Target:
    """Where one request goes.

    host: in lower case and ASCII, without brackets.
    path: with the query, as it is sent.
    login: the credentials of a Basic Authorization header, in base64.
    """

    scheme: str
    host: str
    port: int
    path: str
    login: str | None = field(default=None, repr=False)

    @property
    def origin(self) -> tuple[str, str, int]:
        return (self.scheme, self.host, self.port)

    @property
    def url(self) -> str:
        """The URL without the login."""
        return f"{self.scheme}://{self.host_header}{self.path}"

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(url: str) -> Target:
    """Parses an http(s) URL as browsers do. Raises RowError, fetch_denied."""
    parts = split_web_url(url)
    if parts is None:
        raise _denied(f"found the scheme '{_scheme(url)}', expected http or https")
    return _target(parts)


def follow_redirect(target: Target, location: str) -> Target:
    """Returns the target of a redirect. The login is sent on to the same origin only.

    location: the header's bytes, as Latin-1. Raises RowError, fetch_denied, also for a redirect
    from https to http.
    """
    with contextlib.suppress(UnicodeError):  # most servers send UTF-8
        location = location.encode("latin-1").decode("utf-8")
    base = WebUrl(target.scheme, target.host_header, target.path)
    parts = join_web_url(base, location)
    if parts is None:
        raise _denied(
            f"found a redirect to the scheme '{_scheme(location)}', expected http or https"
        )
    redirected = _target(parts)
    if target.scheme == "https" and redirected.scheme == "http":
        raise _denied("found a redirect from https to http, expected https to stay")
    # A login in the redirect's URL is the other server's choice, and is never sent.
    login = target.login if redirected.origin == target.origin else None
    return replace(redirected, login=login)


def _target(url: WebUrl) -> Target:
    login, at, address = url.authority.rpartition("@")
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:
        raise _denied("found no valid host and port in the URL")
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[url.scheme]
    if not 0 < port < 65536:
        raise _denied(f"found port {port} in the URL, expected 1 to 65535")
    host = match["host"]
    return Target(
        scheme=url.scheme,
        host=_normalize_address(host[1:-1]) if host.startswith("[") else _normalize_name(host),
        port=port,
        path=url.path,
        login=base64.b64encode(unquote(login).encode(errors="replace")).decode() if at else None,
    )


def _scheme(url: str) -> str:
    return url.strip().partition(":")[0][:40]


def resolve_addresses(target: Target, rules: AddressRules, resolve: Resolver) -> list[str]:
    """Returns the addresses to connect to, in the order to try them.

    Raises RowError, fetch_denied, if the host or one of its addresses is not allowed; OSError if
    the name cannot be resolved.
    """
    check_host(target.host, rules)
    if _parse_address(target.host):
        addresses = [target.host]
    else:
        addresses = list(dict.fromkeys(resolve(target.host, target.port)))
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    if not (rules.private or all(map(is_public, addresses))):
        # The message omits the address: rows must not become a map of the network.
        raise _denied(
            f"the host {target.host} has a private or reserved address, expected a public one; "
            "fetch.private_addresses=true allows it"
        )
    return addresses


def check_host(host: str, rules: AddressRules) -> None:
    """Raises RowError, fetch_denied, if no pattern allows the host."""
    if rules.hosts is not None and not any(
        fnmatch.fnmatchcase(host, _normalize_pattern(pattern)) for pattern in rules.hosts
    ):
        raise _denied(
            f"found the host {host}, expected one of fetch.hosts: {', '.join(rules.hosts)}"
        )


def is_public(address: str) -> bool:
    """Whether an address is globally reachable. Checks IPv4 addresses embedded in IPv6, too."""
    parsed = _parse_address(address)
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in _BLOCKED_V4)
    if parsed is None or parsed.scope_id is not None:
        return False
    if parsed in _IPV4_MAPPED or parsed in _NAT64:
        return is_public(str(IPv4Address(parsed.packed[-4:])))
    return parsed in _GLOBAL_V6 and not any(parsed in network for network in _BLOCKED_V6)


def system_resolver(name: str, port: int) -> list[str]:
    """Looks a name up with the system's resolver. Raises OSError."""
    entries = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(socket_address[0]) for *_, socket_address in entries]


def _normalize_address(name: str) -> str:
    """Returns an IPv6 address, without brackets, in the one form that is compared and sent."""
    try:
        address = IPv6Address(name)
    except ValueError:
        raise _denied("found no valid IPv6 address between the URL's brackets") from None
    if address.scope_id is not None:
        raise _denied("found an IPv6 address with a zone, expected none")
    return str(address)


def _normalize_name(name: str) -> str:
    """Returns a host name in the one form that is compared, looked up and sent."""
    host = _to_ascii(unquote(name)).removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise _denied("found a host that is not a valid name")
    # A host that ends in a number is an address. Some parsers accept 127.1, 0177.1 or 0x7f000001
    # too; only four decimal numbers mean the same to all.
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise _denied(
                "found a host that ends in a number and is not four decimal ones, expected a name "
                "or an address such as 192.0.2.1"
            ) from None
    return host


def _to_ascii(name: str) -> str:
    """Returns a domain in lower case and ASCII, as browsers map it (UTS 46, not transitional).

    This also maps full-width digits and dots to ASCII ones. Raises RowError, fetch_denied.
    """
    if name.isascii():
        return name.lower()
    try:
        mapped = idna.uts46_remap(name, std3_rules=False, transitional=False)
        return ".".join(map(_to_ascii_label, mapped.split(".")))
    except UnicodeError:  # idna's errors are of this type
        raise _denied("found a host that is not a valid name") from None


def _to_ascii_label(label: str) -> str:
    if label.isascii():
        return label
    if label.startswith("xn--"):
        raise UnicodeError("a label that is encoded already")
    return f"xn--{label.encode('punycode').decode()}"


def _normalize_pattern(pattern: str) -> str:
    """Returns a host pattern in the form of `_normalize_host`, with * as the only wildcard."""
    plain = _to_ascii(pattern.strip()).removesuffix(".")
    if ":" in plain:
        plain = plain.strip("[]")
    return plain.lower().replace("[", "[[]").replace("?", "[?]")


def _parse_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _denied(message: str) -> RowError:
    return RowError(ErrorCode.FETCH_DENIED, message)
