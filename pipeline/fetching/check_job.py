"""Turns what a job says of fetching and its limits into a sentence, where it could only fail later.

What one URL is worth is not known here, and nothing is looked up: the machines that fetch may see
other folders and other names than the one that checks.
"""

from pathlib import Path

from mediamill.pipeline.fetching.addresses import is_public, parse
from mediamill.pipeline.fetching.fetcher import SCHEMES
from mediamill.pipeline.fetching.file_source import NEVER
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError, RowError
from mediamill.schemas.job import FetchConfig, JobConfig, Limits
from mediamill.schemas.nearest import nearest

_YEAR_S = 366 * 24 * 3600  # longer waits are more than the system's own calls take
_MOST_BYTES = 1 << 48  # more than any machine has
_STAND_INS = ("x", "1", "1.1")  # for the * of a pattern; an address has numbers there


def check_fetching(job: JobConfig) -> None:
    """Raises JobError: the key, what was found, what was expected."""
    _check_schemes(job.fetch)
    for pattern in job.fetch.hosts or ():
        _check_host(pattern, job.fetch.private_addresses)
    for root in job.fetch.roots or ():
        _check_root(root)
    _check_sizes("limits", job.limits)
    _check_sizes("fetch", job.fetch)


def _check_schemes(fetch: FetchConfig) -> None:
    if fetch.schemes is None:
        return
    known = ", ".join(SCHEMES)
    if not fetch.schemes:
        raise JobError(
            "fetch.schemes: found an empty list, which allows no medium, expected some of "
            f"{known}, or null for all"
        )
    for name in fetch.schemes:
        if name not in SCHEMES:
            guess = nearest(name.removesuffix("://").removesuffix(":"), SCHEMES)
            instead = f"did you mean '{guess}'?" if guess else f"expected one of {known}"
            raise JobError(f"fetch.schemes: found '{storage.redact(name)}', {instead}")


def _check_host(pattern: str, private: bool) -> None:
    """A pattern that no URL's host can match is a mistake."""
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
    found: list[str] = []
    why = ""
    for stand_in in _STAND_INS:
        filled = host.replace("*", stand_in)
        try:
            found.append(parse(f"https://{f'[{filled}]' if ':' in filled else filled}/").host)
        except RowError as error:
            why = why or error.message
    if not found:
        raise JobError(f"fetch.hosts: {why}: '{shown}', expected a name or address, with *")
    own = found[0] == "localhost" or (_is_address(found[0]) and not is_public(found[0]))
    if "*" not in host and own and not private:
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
    for never in NEVER:
        if path.is_relative_to(never):
            raise JobError(
                f"fetch.roots: found '{root}', expected a folder outside {never}, whose files are "
                "never read"
            )


def _check_sizes(section: str, config: Limits | FetchConfig) -> None:
    for name in type(config).model_fields:
        value = getattr(config, name)
        for ending, most in (("_s", _YEAR_S), ("_bytes", _MOST_BYTES)):
            if name.endswith(ending) and value > most:
                unit = "seconds, a year" if ending == "_s" else "bytes, 256 TiB"
                raise JobError(
                    f"{section}.{name}: found {value:g}, expected at most {most:,} {unit}"
                )
