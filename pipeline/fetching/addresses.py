"""Turns an http(s) URL into the host, port and addresses that a request may go to.

A URL comes from outside: it may name this machine, its network or its cloud's metadata service in
many disguises. What is checked here is what is connected to: names are looked up once, all their
addresses have to be allowed, and the caller connects to one of these, not to the name.
"""

import base64
import fnmatch
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import unquote, urljoin, urlsplit

from mediamill.schemas.errors import ErrorCode, RowError

# A name and a port -> its addresses. Raises OSError.
Resolver = Callable[[str, int], Sequence[str]]

_PORTS = {"http": 80, "https": 443}
# IANA's special-purpose registries. Written out: what `is_global` says differs between Pythons.
_CLOSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; Linux connects to itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers; some clouds' metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # the host of an Azure machine: public in form only
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
_OPEN_V6 = IPv6Network("2000::/3")  # all that has been given out
_CLOSED_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols, Teredo among them
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_TRANSLATED = IPv6Network("64:ff9b::/96")  # where a network without IPv4 reaches IPv4
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True)
class AddressRules:
    """hosts: patterns, * for any part; None for every host. private: whether addresses may be of
    this machine or a private network.
    """

    hosts: tuple[str, ...] | None = None
    private: bool = False


@dataclass(frozen=True)
class Target:
    """One request's aim. host: in lower case and ASCII, without brackets. path: with the query, as
    it goes over the wire. login: of an Authorization header.
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
        """Without login."""
        return f"{self.scheme}://{self.host_header}{self.path}"

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str) -> Target:
    """Where an http(s) URL points. Raises RowError, fetch_denied, where readers could disagree."""
    if _UNSAFE.search(url):
        raise _denied("found a blank, backslash or control character in the URL, expected none")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _denied("found no valid host and port in the URL") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        raise _denied(f"found the scheme '{scheme}', expected http or https")
    login, at, _ = parts.netloc.rpartition("@")
    if "@" in login:
        raise _denied("found more than one @ before the URL's path, expected at most one")
    if port == 0:
        raise _denied("found port 0 in the URL")
    host = parts.hostname or ""
    if ("[" in parts.netloc) != (":" in host):
        raise _denied("found brackets around what is no IPv6 address")
    return Target(
        scheme=scheme,
        host=_host(host),
        port=_PORTS[scheme] if port is None else port,
        path=_encoded(parts.path or "/") + (f"?{_encoded(parts.query)}" if parts.query else ""),
        login=base64.b64encode(unquote(login).encode()).decode() if at else None,
    )


def follow(target: Target, location: str) -> Target:
    """Where a redirect goes. A login goes with it to the same host only, and encryption is never
    given up. Raises RowError, fetch_denied.
    """
    if _UNSAFE.search(location):
        raise _denied("found a redirect with a blank, backslash or control character in its URL")
    try:
        url = urljoin(target.url, location)
    except ValueError:
        raise _denied("found a redirect without a valid URL") from None
    found = parse(url)
    if target.scheme == "https" and found.scheme == "http":
        raise _denied("found a redirect from https to http, expected https to stay")
    # What the redirect itself brings is the other server's choice, never ours to send.
    login = target.login if found.origin == target.origin else None
    return Target(found.scheme, found.host, found.port, found.path, login)


def addresses(target: Target, rules: AddressRules, resolve: Resolver) -> list[str]:
    """The addresses to connect to, in the order to try.

    Raises RowError, fetch_denied, when the host or one of its addresses is not allowed; OSError
    when the name is not known.
    """
    check_host(target.host, rules)
    literal = _literal(target.host)
    found = [target.host] if literal else list(dict.fromkeys(resolve(target.host, target.port)))
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    if not rules.private:
        for address in found:
            if not is_public(address):
                # Which one stays unsaid: rows must not become a map of the private network.
                raise _denied(
                    f"the host {target.host} has a private or reserved address, expected a public "
                    "one; fetch.private_addresses=true allows it"
                )
    return found


def check_host(host: str, rules: AddressRules) -> None:
    """Raises RowError, fetch_denied, when no pattern allows the host."""
    if rules.hosts is None:
        return
    if not any(fnmatch.fnmatchcase(host, _pattern(one)) for one in rules.hosts):
        raise _denied(
            f"found the host {host}, expected one of fetch.hosts: {', '.join(rules.hosts)}"
        )


def is_public(address: str) -> bool:
    """Whether an address is one that everybody can reach; also of IPv4 inside of IPv6."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv4Address):
        return not any(found in network for network in _CLOSED_V4)
    if found.scope_id is not None:
        return False
    if found in _MAPPED or found in _TRANSLATED:
        return is_public(str(IPv4Address(found.packed[-4:])))
    return found in _OPEN_V6 and not any(found in network for network in _CLOSED_V6)


def system_resolver(name: str, port: int) -> list[str]:
    """What this machine knows of a name. Raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


def _host(name: str) -> str:
    """A host in the one form that is compared, looked up and sent."""
    if ":" in name:  # urlsplit has taken the brackets off
        try:
            address = IPv6Address(name)
        except ValueError:
            raise _denied("found no valid IPv6 address between the URL's brackets") from None
        if address.scope_id is not None:
            raise _denied("found an IPv6 address with a zone, expected none")
        return str(address)
    if not name.isascii():
        try:
            # Also what only looks like ASCII: full-width digits and dots become plain ones.
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise _denied("found a host that is no valid name") from None
    host = name.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_NAME.fullmatch(label) for label in labels):
        raise _denied("found a host that is no valid name")
    # Whatever ends in a number is an address, and some readers take 127.1, 0177.1 or 0x7f000001
    # for one too: only the plain form is known to mean the same to all.
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise _denied(
                "found a host that ends in a number and is not four decimal ones, expected a name "
                "or an address such as 192.0.2.1"
            ) from None
    return host


def _pattern(pattern: str) -> str:
    """A host pattern as hosts are compared; [ is no wildcard."""
    plain = pattern.strip().removesuffix(".")
    if not plain.isascii():
        plain = ".".join(
            label if label.isascii() else label.encode("idna").decode("ascii")
            for label in plain.split(".")
        )
    if ":" in plain:
        plain = plain.strip("[]")
    return plain.lower().replace("[", "[[]").replace("?", "[?]")


def _literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _encoded(text: str) -> str:
    """What is not ASCII in a path, in percent signs; signed URLs must stay as they are."""
    return re.sub(
        r"[^\x21-\x7e]+",
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "replace")),
        text,
    )


def _denied(what: str) -> RowError:
    return RowError(ErrorCode.FETCH_DENIED, what)
