"""Makes ids of rows: text of any file name, unique, and the same in every run."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

_HASH_BYTES, _SHELVES = 12, 32
_Hashes = npt.NDArray[np.bytes_]


class KeySet:
    """A set of ids that holds 12 bytes of each, a hash; equal hashes of other ids do not happen.

    The hashes lie in shelves by their first bits. Each shelf is a few sorted arrays, each larger
    than all later ones together; so merging two needs little memory beside the set.
    """

    def __init__(self) -> None:
        self._shelves: list[list[_Hashes]] = [[] for _ in range(_SHELVES)]

    def __len__(self) -> int:
        return sum(array.size for shelf in self._shelves for array in shelf)

    def add(self, keys: Iterable[object]) -> npt.NDArray[np.bool_]:
        """Adds ids; returns for each whether it was new. The first of equal ones is."""
        hashes = _hash(keys)
        if not hashes.size:
            return np.zeros(0, np.bool_)
        unique, first = np.unique(hashes, return_index=True)
        is_new = np.zeros(hashes.size, np.bool_)
        for shelf, part in self._parts(unique):
            is_known = _find(shelf, unique[part])
            is_new[first[part]] = ~is_known
            _insert(shelf, unique[part][~is_known])
        return is_new

    def _parts(self, unique: _Hashes) -> Iterator[tuple[list[_Hashes], slice]]:
        """Yields the shelves of sorted hashes, each with where its hashes are."""
        first_bytes = unique.view(np.uint8)[::_HASH_BYTES]
        shelf_of = first_bytes // (256 // _SHELVES)
        numbers, starts = np.unique(shelf_of, return_index=True)
        stops = [*starts[1:].tolist(), unique.size]
        for number, start, stop in zip(numbers.tolist(), starts.tolist(), stops, strict=True):
            yield self._shelves[number], slice(start, stop)


def _find(shelf: list[_Hashes], hashes: _Hashes) -> npt.NDArray[np.bool_]:
    found = np.zeros(hashes.size, np.bool_)
    for array in shelf:
        positions = np.minimum(np.searchsorted(array, hashes), array.size - 1)
        found |= array[positions] == hashes
    return found


def _insert(shelf: list[_Hashes], hashes: _Hashes) -> None:
    if not hashes.size:
        return
    shelf.append(hashes)
    while len(shelf) > 1 and shelf[-2].size <= 2 * shelf[-1].size:
        last, previous = shelf.pop(), shelf.pop()
        merged = np.concatenate([previous, last])
        merged.sort(kind="stable")
        shelf.append(merged)


class Repeats:
    """Numbers ids that occur more than once: `a`, `a#2`, `a#3`, in the order of a source."""

    def __init__(self) -> None:
        self._seen = KeySet()
        self._counts: dict[str, int] = {}

    def number(self, keys: list[str]) -> list[str]:
        """Returns the ids of the next rows."""
        numbered = []
        for key, new in zip(keys, self._seen.add(keys).tolist(), strict=True):
            if not new:
                # A key such as `a#2` may itself be in the source.
                while not new:
                    count = self._counts[key] = self._counts.get(key, 1) + 1
                    new = bool(self._seen.add([f"{key}#{count}"])[0])
                key = f"{key}#{count}"
            numbered.append(key)
        return numbered


def readable(name: str) -> str:
    """A file name as valid text: bytes that are no UTF-8 as `\\xff`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name


def _hash(keys: Iterable[object]) -> _Hashes:
    digests = [
        hashlib.blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
        for key in keys
    ]
    return np.array(digests, f"S{_HASH_BYTES}")
