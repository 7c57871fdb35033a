"""Checks the sections `fetch` and `limits` of a job for values that could only fail later.

Looks up no hosts and no folders: the machines that fetch may see other ones than this machine.
"""

from pathlib import Path

from mediamill.pipeline.fetching.addresses import is_public, parse_url
from mediamill.pipeline.fetching.file_source import FORBIDDEN_FOLDERS
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.schemes import SCHEMES
from mediamill.schemas.errors import JobError, RowError
from mediamill.schemas.job import FetchConfig, JobConfig, Limits
from mediamill.schemas.nearest import nearest

_MAX_SECONDS = 366 * 24 * 3600  # system calls accept no longer timeouts
_MAX_BYTES = 1 << 48  # more than any machine has
_WILDCARD_VALUES = ("x", "1", "1.1")  # tried for the * of a pattern, a name's or an address's


def check_fetching(job: JobConfig) -> None:
    """Raises JobError, with the key, the value and what was expected."""
    _check_schemes(job.fetch)
    for pattern in job.fetch.hosts or ():
        _check_host(pattern, job.fetch.private_addresses)
    for root in job.fetch.roots or ():
        _check_root(root)
    _check_sizes("limits", job.limits)
    _check_sizes("fetch", job.fetch)


def _check_schemes(fetch: FetchConfig) -> None:
    known = ", ".join(SCHEMES)
    if fetch.schemes is not None and not fetch.schemes:
        raise JobError(
            "fetch.schemes: found an empty list, which allows no medium, expected some of "
            f"{known}, or null for all"
        )
    for name in fetch.schemes or ():
        if name not in SCHEMES:
            guess = nearest(name.removesuffix("://").removesuffix(":"), SCHEMES)
            instead = f"did you mean '{guess}'?" if guess else f"expected one of {known}"
            raise JobError(f"fetch.schemes: found '{storage.redact(name)}', {instead}")


def _check_host(pattern: str, private: bool) -> None:
    """Raises JobError for a pattern that no URL's host can match."""
    plain = pattern.strip()
    shown = storage.redact(plain)
    if "/" in plain or "@" in plain:
        raise JobError(
            f"fetch.hosts: found '{shown}', expected a host alone, without scheme, login or path"
        )
    host = plain.removeprefix("[").removesuffix("]")
    if host.count(":") == 1:
        name = host.partition(":")[0]
        raise JobError(
            f"fetch.hosts: found '{shown}' with a port, expected a host alone ('{name}')"
        )
    hosts, reason = [], ""
    for value in _WILDCARD_VALUES:
        filled = host.replace("*", value)
        try:
            hosts.append(parse_url(f"https://{f'[{filled}]' if ':' in filled else filled}/").host)
        except RowError as error:
            reason = reason or error.message
    if not hosts:
        raise JobError(f"fetch.hosts: '{shown}': {reason}")
    is_private = hosts[0] == "localhost" or (_is_address(hosts[0]) and not is_public(hosts[0]))
    if "*" not in host and is_private and not private:
        raise JobError(
            f"fetch.hosts: found '{shown}', which is private, expected a public host; "
            "fetch.private_addresses=true allows it"
        )


def _is_address(host: str) -> bool:
    return ":" in host or host.rpartition(".")[2].isdigit()


def _check_root(root: str) -> None:
    if storage.scheme(root) != "file":
        raise JobError(
            f"fetch.roots: found '{storage.redact(root)}', expected a folder of the file system; "
            "what other URLs rows may name is in fetch.schemes and fetch.hosts"
        )
    path = Path(storage.absolute(root))
    for forbidden in FORBIDDEN_FOLDERS:
        if path.is_relative_to(forbidden):
            raise JobError(
                f"fetch.roots: found '{root}', expected a folder outside {forbidden}, whose files "
                "are never read"
            )


def _check_sizes(section: str, config: Limits | FetchConfig) -> None:
    for name in type(config).model_fields:
        value = getattr(config, name)
        for suffix, largest in (("_s", _MAX_SECONDS), ("_bytes", _MAX_BYTES)):
            if name.endswith(suffix) and value > largest:
                unit = "seconds, a year" if suffix == "_s" else "bytes, 256 TiB"
                raise JobError(
                    f"{section}.{name}: found {value:g}, expected at most {largest:,} {unit}"
                )
