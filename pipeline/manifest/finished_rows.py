"""Finds by their ids which rows of a manifest are finished, where the ledger's bits do not say it.

It is an external merge join: the 128-bit hashes of the ids of all finished rows, and those of the
manifest's rows with their positions, are sorted together in a temporary file of 24 bytes for each.
Two ids with the same hash would lose a row; among 10^12 ids the chance is 10^-15.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from mediamill.pipeline.ledger.state import Bitmap
from mediamill.pipeline.manifest.id_index import Hashes, HashSorter
from mediamill.pipeline.manifest.manifest import ManifestFile
from mediamill.pipeline.manifest.unique_ids import hash_ids, id_batches, plain_ids

_READERS = 8
_SECOND_KEY = "mediamill second"  # 16 characters; the first half of a hash has pandas' own key
_FINISHED = np.uint64(2**64 - 1)  # in the place of a position: this is the id of a finished row

Read = Callable[[Callable[[pa.Array], None]], None]  # calls its argument with some ids at a time


class Tail(NamedTuple):
    """The rows of a file from the index `start` on."""

    file: ManifestFile
    start: int

    @property
    def rows(self) -> int:
        return self.file.rows - self.start


class FoundRows(NamedTuple):
    """bitmaps: by file name, which rows are finished; files without such a row are left out.

    rows: their number. ids: the number of ids of finished rows; distinct: without duplicates.
    """

    bitmaps: dict[str, Bitmap]
    rows: int
    ids: int
    distinct: int


def find_finished(tails: Sequence[Tail], read: Read, finished: int) -> FoundRows:
    """Returns which rows of the tails have the ids that `read` brings, about `finished` of them."""
    # Each file begins at a whole byte of one bitmap.
    sizes = [-(-tail.file.rows // 8) for tail in tails]
    starts = np.cumsum([0, *sizes])
    bitmap = np.zeros(starts[-1], np.uint8)
    rows = ids = distinct = 0
    with _sorted(tails, (starts[:-1] * 8).tolist(), read, finished) as buckets:
        for names, positions in buckets:
            is_finished = positions == _FINISHED
            done, others = names[is_finished], ~is_finished
            found = positions[others][_are_in(names[others], done)].astype(np.int64)
            np.bitwise_or.at(bitmap, found >> 3, np.left_shift(1, found & 7).astype(np.uint8))
            rows += found.size
            ids += len(done)
            distinct += _count_distinct(done)
    bitmaps = {
        tail.file.name: bitmap[start : start + size]
        for tail, start, size in zip(tails, starts[:-1], sizes, strict=True)
        if bitmap[start : start + size].any()
    }
    return FoundRows(bitmaps, rows, ids, distinct)


def find_missing(
    files: Sequence[ManifestFile], read: Read, finished: int, limit: int
) -> list[object]:
    """Returns ids that `read` brings and that no file has, at most `limit`."""
    tails = [Tail(file, 0) for file in files]
    missing = np.empty((0, 2), np.uint64)
    with _sorted(tails, [0] * len(tails), read, finished) as buckets:
        for names, positions in buckets:
            is_finished = positions == _FINISHED
            done = names[is_finished]
            unknown = done[~_are_in(done, names[~is_finished])]
            missing = np.concatenate([missing, unknown])[:limit]
            if len(missing) == limit:
                break
    missing = missing[np.argsort(missing[:, 0])]
    found: list[object] = []

    def take(ids: pa.Array) -> None:
        indices = np.flatnonzero(_are_in(_names(ids), missing))
        found.extend(ids[index].as_py() for index in indices.tolist())

    read(take)
    return found[:limit]


@contextmanager
def _sorted(
    tails: Sequence[Tail], offsets: Sequence[int], read: Read, finished: int
) -> Iterator[Iterator[tuple[Hashes, npt.NDArray[np.uint64]]]]:
    """Yields buckets of the hashes of all ids, [n, 2], by the first column, with positions, [n].

    A position is the index of a row in its file plus the file's offset, or _FINISHED.
    """
    total = finished + sum(tail.rows for tail in tails)
    sorter = HashSorter(total, width=3)

    def add(ids: pa.Array, positions: npt.NDArray[np.uint64]) -> None:
        sorter.add(np.column_stack([_names(ids), positions]))

    def add_rows(tail: Tail, offset: int) -> None:
        for first, batch in id_batches(tail.file):
            ids = batch.slice(max(tail.start - first, 0))
            stop = offset + first + len(batch)
            add(ids, np.arange(stop - len(ids), stop, dtype=np.uint64))

    try:
        with ThreadPoolExecutor(_READERS) as readers:
            list(readers.map(add_rows, tails, offsets))
        read(lambda ids: add(ids, np.full(len(ids), _FINISHED)))
        buckets = (sorter.bucket(number) for number in range(1 << sorter.bits))
        yield ((records[:, :2], records[:, 2]) for records in buckets)
    finally:
        sorter.close()


def _names(ids: pa.Array) -> Hashes:
    """Returns the 128-bit hashes of ids, [n, 2]: the second half of an integer is itself."""
    if pa.types.is_integer(ids.type):
        second = plain_ids(ids).view(np.uint64)
    else:
        second = pd.util.hash_array(plain_ids(ids), hash_key=_SECOND_KEY, categorize=False)
    return np.column_stack([hash_ids(ids), second])


def _are_in(names: Hashes, others: Hashes) -> npt.NDArray[np.bool_]:
    """Returns which of the names are among the others; both are [n, 2], `others` ascending."""
    found = np.zeros(len(names), np.bool_)
    positions = np.searchsorted(others[:, 0], names[:, 0])
    left = np.arange(len(names))  # those whose first half may be at their position
    while left.size:
        left = left[positions[left] < len(others)]
        left = left[others[positions[left], 0] == names[left, 0]]
        same = others[positions[left], 1] == names[left, 1]
        found[left[same]] = True
        left = left[~same]  # a collision of 64 bits: the next one may be the same name
        positions[left] += 1
    return found


def _count_distinct(names: Hashes) -> int:
    """Returns the number of different names; they are ascending by the first column."""
    if not (names[1:, 0] == names[:-1, 0]).any():
        return len(names)
    return len(np.unique(names, axis=0))
