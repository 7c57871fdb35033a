"""Parses an http(s) URL, and resolves its host to the addresses that a request may go to.

URLs are untrusted: they may name this machine, its network or its cloud's metadata service in many
disguises. Therefore a name is looked up once, all its addresses must be allowed, and the caller
connects to one of these addresses, not to the name.
"""

import base64
import fnmatch
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import unquote, urljoin, urlsplit

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
_UNSAFE_CHARACTERS = re.compile(r"[\x00-\x20\x7f\\]")


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
    """Parses an http(s) URL. Raises RowError, fetch_denied, where parsers could disagree."""
    if _UNSAFE_CHARACTERS.search(url):
        raise _denied("found a blank, backslash or control character in the URL, expected none")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _denied("found no valid host and port in the URL") from None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise _denied(f"found the scheme '{scheme}', expected http or https")
    login, at, _ = parts.netloc.rpartition("@")
    if "@" in login:
        raise _denied("found more than one @ before the URL's path, expected at most one")
    if port == 0:
        raise _denied("found port 0 in the URL")
    host = parts.hostname or ""
    if ("[" in parts.netloc) != (":" in host):
        raise _denied("found brackets around something other than an IPv6 address")
    return Target(
        scheme=scheme,
        host=_normalize_host(host),
        port=_DEFAULT_PORTS[scheme] if port is None else port,
        path=_percent_encode(parts.path or "/")
        + (f"?{_percent_encode(parts.query)}" if parts.query else ""),
        login=base64.b64encode(unquote(login).encode()).decode() if at else None,
    )


def follow_redirect(target: Target, location: str) -> Target:
    """Returns the target of a redirect. The login is sent on to the same origin only.

    Raises RowError, fetch_denied, also for a redirect from https to http.
    """
    if _UNSAFE_CHARACTERS.search(location):
        raise _denied("found a redirect with a blank, backslash or control character in its URL")
    try:
        url = urljoin(target.url, location)
    except ValueError:
        raise _denied("found a redirect without a valid URL") from None
    redirected = parse_url(url)
    if target.scheme == "https" and redirected.scheme == "http":
        raise _denied("found a redirect from https to http, expected https to stay")
    # A login in the redirect's URL is the other server's choice, and is never sent.
    login = target.login if redirected.origin == target.origin else None
    return replace(redirected, login=login)


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


def _normalize_host(name: str) -> str:
    """Returns a host in the one form that is compared, looked up and sent."""
    if ":" in name:  # urlsplit removes the brackets
        try:
            address = IPv6Address(name)
        except ValueError:
            raise _denied("found no valid IPv6 address between the URL's brackets") from None
        if address.scope_id is not None:
            raise _denied("found an IPv6 address with a zone, expected none")
        return str(address)
    if not name.isascii():
        try:
            # This also maps full-width digits and dots to ASCII ones.
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise _denied("found a host that is not a valid name") from None
    host = name.lower().removesuffix(".")
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


def _normalize_pattern(pattern: str) -> str:
    """Returns a host pattern in the form of `_normalize_host`, with * as the only wildcard."""
    plain = ".".join(
        label if label.isascii() else label.encode("idna").decode("ascii")
        for label in pattern.strip().removesuffix(".").split(".")
    )
    if ":" in plain:
        plain = plain.strip("[]")
    return plain.lower().replace("[", "[[]").replace("?", "[?]")


def _parse_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _percent_encode(text: str) -> str:
    """Percent-encodes the non-ASCII characters only: signed URLs must not change."""
    return re.sub(
        r"[^\x21-\x7e]+",
        lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "replace")),
        text,
    )


def _denied(message: str) -> RowError:
    return RowError(ErrorCode.FETCH_DENIED, message)
