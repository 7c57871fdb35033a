"""Turns what runs have committed into visible files, and removes what they have not: at the start
of a run, at its end, and after a kill.

All of it may be cut off at any instant and begun again. How one file is made is publish.py's.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from mediamill.pipeline.ledger import publish
from mediamill.pipeline.ledger.ledger import record_of
from mediamill.pipeline.ledger.log import TakenOverError, Writer, catch_up, taken_over
from mediamill.pipeline.ledger.state import Group, LedgerState
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

SUCCESS = "_SUCCESS"
_MOVERS = 8  # files that are made at once; each is in memory, with its parts
_BATCH = 256  # files after which the log takes note of them
_BATCH_BYTES = 32 * 1024**2  # of their parts, where the files are more than are made at once


def recover(output: Place, state: LedgerState) -> None:
    """Makes visible what older runs have decided to, and removes what they have not committed.

    Their finished rows that do not fill a file stay hidden, and go into this run's files. Only when
    a run has begun, and none of its tasks: so nobody else may commit.
    Raises TakenOverError when a newer run has begun.
    """
    run = _run_of(state)
    if state.groups:
        _publish(output, state, Writer(output, state, run))
    _clean(output, state, run)


def flush(output: Place, state: LedgerState) -> None:
    """Makes all finished rows visible: each folder's last file may have fewer rows than others.

    For the end of a run: none of its tasks can commit after that. Brings `state` up to date.
    Raises TakenOverError when a newer run has begun.
    """
    run = _run_of(state)
    catch_up(output, state)
    if state.run != run:
        raise taken_over(output, state)
    writer = Writer(output, state, run, closing=True)
    writer.add(lambda: record_of(state, everything=True) if state.parts else None)
    _publish(output, state, writer)
    _clean(output, state, run)


def is_settled(output: Place, state: LedgerState) -> bool:
    """Whether all finished rows are visible, nothing is staged, and the end was noted."""
    if state.tokens or publish.leftovers(output, ()):
        return False
    return storage.exists(output / SUCCESS)


def mark_finished(output: Place, summary: str) -> None:
    """Tells readers that every row of the manifest is there; the summary says what they are."""
    storage.put(output / SUCCESS, summary.encode())


def mark_unfinished(output: Place) -> None:
    """To be called before a run adds rows."""
    storage.remove(output / SUCCESS)


def _run_of(state: LedgerState) -> str:
    if state.run is None:
        raise TakenOverError("no run has begun on the output")
    return state.run


def _publish(output: Place, state: LedgerState, writer: Writer) -> None:
    """Publishes every group of the state."""
    with ThreadPoolExecutor(_MOVERS) as movers:
        # In the order of the folders, as they lie in the staged objects: neighbours are read
        # together, where thousands of folders would mean a request for every few rows.
        for groups in _batches(sorted(state.groups.values())):
            _make_visible(output, groups, movers)
            names = [group.name for group in groups]
            writer.add(lambda: record_of(state, published=names))  # noqa: B023
            tokens = {part.token for group in groups for part in group.parts}
            gone = [token for token in tokens if token not in state.tokens]
            list(movers.map(lambda token: publish.discard(output, [token]), gone))


def _make_visible(output: Place, groups: Sequence[Group], movers: ThreadPoolExecutor) -> None:
    contents = publish.read_parts(output, groups)
    list(movers.map(lambda group: publish.publish(output, group, contents), groups))


def _batches(groups: Iterable[Group]) -> Iterator[list[Group]]:
    batch: list[Group] = []
    size = 0
    for group in groups:
        length = sum(part.length for part in group.parts)
        full = len(batch) == _BATCH or size + length > _BATCH_BYTES
        if full and len(batch) >= _MOVERS:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += length
    if batch:
        yield batch


def _clean(output: Place, state: LedgerState, run: str) -> None:
    """Removes what nobody needs: staged by tasks that were killed before they committed."""
    found = publish.leftovers(output, state.tokens)
    # This process may have slept for hours. If no other run has begun by now, then what was found
    # before is of tasks that cannot commit any more.
    catch_up(output, state)
    if state.run != run:
        raise taken_over(output, state)
    with ThreadPoolExecutor(_MOVERS) as movers:
        list(movers.map(storage.remove, found))
