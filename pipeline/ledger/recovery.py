"""Recovers an output at the start of a run, and makes all of its rows visible at the end.

Both publish the files that the ledger has decided on, and remove staged objects that were never
committed. They may be cut off at any instant and repeated.
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mediamill.pipeline.ledger import compaction, publish
from mediamill.pipeline.ledger.ledger import record_of
from mediamill.pipeline.ledger.log import (
    HIDDEN,
    TakenOverError,
    Writer,
    catch_up,
    log_end,
    taken_over,
)
from mediamill.pipeline.ledger.rewrite import rewrite
from mediamill.pipeline.ledger.state import Group, LedgerState, VisibleFile
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

SUCCESS = "_SUCCESS"
_THREADS = 8  # files that are written at once; each is in memory, with its parts
_BATCH_FILES = 256  # at most, between two records of the log
_BATCH_BYTES = 32 * 1024**2  # of their parts, at most, unless that is fewer files than threads


def recover(output: Place, state: LedgerState) -> None:
    """Publishes the groups of older runs, and removes what they have staged and not committed.

    Their finished rows that do not fill a file stay hidden, and go into this run's files.
    Must be called after the run has begun and before its first task, so that nothing else commits.
    Raises TakenOverError when a newer run has begun.
    """
    run = _run_of(state)
    publish.permit(output, run)
    revoke_others(output, state, run)
    compaction.finish(output)
    if state.groups or state.replacements:
        _publish(output, state, Writer(output, state, run))
    _clean(output, state, run)


def flush(output: Place, state: LedgerState) -> None:
    """Ends the run's commits, and makes all finished rows visible.

    The last file of a folder may have fewer rows. Brings `state` up to date.
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
    publish.revoke(output, [run])


def revoke_others(output: Place, state: LedgerState, run: str) -> None:
    """Keeps tasks of older runs from publishing. Raises TakenOverError when a newer one has begun.

    Brings `state` up to date.
    """
    older = [name for name in publish.permits(output) if name != run]
    catch_up(output, state)  # after the list, so that no newer run is in it
    if state.run != run:
        raise taken_over(output, state)
    publish.revoke(output, older)


def is_settled(output: Place, state: LedgerState) -> bool:
    """Returns whether all finished rows are visible, nothing is staged, and `SUCCESS` exists."""
    if state.tokens or publish.leftovers(output, ()):
        return False
    return storage.exists(output / SUCCESS)


def mark_finished(output: Place, summary: str) -> None:
    """Writes `SUCCESS` with the summary: every row of the manifest is visible to readers."""
    storage.put(output / SUCCESS, summary.encode())


def mark_unfinished(output: Place) -> None:
    """Removes `SUCCESS`. Must be called before a run adds rows."""
    storage.remove(output / SUCCESS)


def _run_of(state: LedgerState) -> str:
    if state.run is None:
        raise TakenOverError("no run has begun on the output")
    return state.run


def _publish(output: Place, state: LedgerState, writer: Writer) -> None:
    """Publishes every group of the state, and puts replacements in the place of old rows."""
    run = _run_of(state)
    _replace(output, state, writer)
    with ThreadPoolExecutor(_THREADS) as threads:
        # In the order of the folders, as in the staged objects: neighbouring parts are read
        # together, while thousands of folders would otherwise need a request for every few rows.
        for groups in _batches(sorted(state.groups.values())):
            contents = publish.read_parts(output, groups)
            make_visible = partial(publish.publish, output, run=run, contents=contents)
            sizes = threads.map(make_visible, groups)
            published = {group.name: size for group, size in zip(groups, sizes, strict=True)}
            writer.add(lambda: record_of(state, published=published))  # noqa: B023
            _discard(output, state, groups, threads)


def _replace(output: Place, state: LedgerState, writer: Writer) -> None:
    """Writes the files anew that have replacements."""
    run, lock = state.run, threading.Lock()

    def check() -> None:
        """Raises when another run has begun: it may have newer rows for the file."""
        with lock:
            if log_end(output) > state.sequence:
                catch_up(output, state)
            if state.run != run:
                raise taken_over(output, state)

    groups = [Group(name, tuple(parts)) for name, parts in sorted(state.replacements.items())]
    with ThreadPoolExecutor(_THREADS) as threads:
        for batch in _batches(groups):
            contents = publish.read_parts(output, batch)

            def replace(group: Group) -> dict[str, VisibleFile]:
                return rewrite(output, {group.name: group.parts}, contents, check)  # noqa: B023

            files = {
                name: file for one in threads.map(replace, batch) for name, file in one.items()
            }
            rewritten = [(name, *file) for name, file in files.items()]
            writer.add(lambda: {**record_of(state), "rewritten": rewritten})  # noqa: B023
            _discard(output, state, batch, threads)


def _discard(
    output: Place, state: LedgerState, groups: Iterable[Group], threads: ThreadPoolExecutor
) -> None:
    """Removes the staged objects of the groups that no other one needs."""
    tokens = {part.token for group in groups for part in group.parts}
    unneeded = [token for token in tokens if token not in state.tokens]
    list(threads.map(lambda token: publish.discard(output, [token]), unneeded))


def _batches(groups: Iterable[Group]) -> Iterator[list[Group]]:
    batch: list[Group] = []
    size = 0
    for group in groups:
        length = sum(part.length for part in group.parts)
        full = len(batch) == _BATCH_FILES or size + length > _BATCH_BYTES
        if full and len(batch) >= _THREADS:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += length
    if batch:
        yield batch


def _clean(output: Place, state: LedgerState, run: str) -> None:
    """Removes the staged objects of tasks that were killed before they committed."""
    leftovers = publish.leftovers(output, state.tokens)
    # This process may have been paused for hours. If no other run has begun by now, the leftovers
    # belong to tasks that can no longer commit.
    catch_up(output, state)
    if state.run != run:
        raise taken_over(output, state)
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(storage.remove, leftovers))
    storage.remove_stale(output / HIDDEN)
    storage.remove_stale(output, below=False)
