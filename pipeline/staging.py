"""Turns staged files into visible ones: a file gets its name when the ledger has its rows.

`publish` may be cut off at any instant and done again by anyone; `recover` does so for what killed
runs left behind. Which rows a file holds is not known here.
"""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline import storage
from pipeline.ledger import HIDDEN
from pipeline.storage import Place

# Readers that take every *.parquet below a folder must not see staged files either.
_SUFFIX = ".staged"
_MOVERS = 16


def stage(output: Place, token: str, name: str, data: bytes) -> None:
    """Keeps the file that will be output/name under a hidden name."""
    storage.put(_staged(output, token, name), data)


def publish(output: Place, token: str, names: Sequence[str]) -> None:
    """Gives the files staged under `token`, which the ledger has committed, their names."""
    for name in names:
        storage.move(_staged(output, token, name), output / name)
    if output.is_local:
        storage.remove_folder(_folder(output) / token)


def discard(output: Place, token: str) -> None:
    """Removes what was staged under `token`, which the ledger did not commit."""
    storage.remove_folder(_folder(output) / token)


def has_leftovers(output: Place) -> bool:
    """Whether files are staged: now, or since a run that was killed."""
    return bool(storage.files_below(_folder(output)))


def recover(output: Place, committed: Collection[str]) -> None:
    """Publishes what is staged under committed tokens and discards the rest.

    Only while no task can commit: when a run has begun, and when it has finished every row.
    """
    by_token: dict[str, list[str]] = {}
    for path in storage.files_below(_folder(output)):
        token, _, rest = path.partition("/")
        names = by_token.setdefault(token, [])
        if rest.endswith(_SUFFIX):
            names.append(rest.removesuffix(_SUFFIX))

    def settle(token: str) -> None:
        if token in committed:
            publish(output, token, by_token[token])
        discard(output, token)

    with ThreadPoolExecutor(_MOVERS) as movers:
        list(movers.map(settle, by_token))


def _folder(output: Place) -> Place:
    return output / HIDDEN / "staged"


def _staged(output: Place, token: str, name: str) -> Place:
    return _folder(output) / token / f"{name}{_SUFFIX}"
