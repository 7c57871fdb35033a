"""Turns what runs have committed into visible files, and removes what they have not: at the start
of a run, at its end, and after a kill.

All of it may be cut off at any instant and begun again. How one file is made is publish.py's.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from pipeline import storage
from pipeline.commit import publish
from pipeline.commit.ledger import record_of
from pipeline.commit.ledger_log import TakenOverError, Writer, catch_up, taken_over
from pipeline.commit.ledger_state import Group, LedgerState
from pipeline.storage import Place

SUCCESS = "_SUCCESS"
_MOVERS = 8  # files that are made at once; each is in memory, with its parts
_BATCH = 256  # files after which the log takes note of them


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
        for groups in _batches(list(state.groups.values())):
            list(movers.map(lambda group: publish.publish(output, group), groups))
            names = [group.name for group in groups]
            writer.add(lambda: record_of(state, published=names))  # noqa: B023
            tokens = {part.token for group in groups for part in group.parts}
            gone = [token for token in tokens if token not in state.tokens]
            list(movers.map(lambda token: publish.discard(output, [token]), gone))


def _batches(groups: Sequence[Group]) -> Iterator[list[Group]]:
    waiting = iter(groups)
    while batch := list(islice(waiting, _BATCH)):
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
