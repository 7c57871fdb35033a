"""Makes ids of rows: text of any file name, unique, and the same in every run."""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_HASH_BYTES = 16
_Hashes = npt.NDArray[np.bytes_]


class KeySet:
    """A set of ids that holds 16 bytes of each, a hash; equal hashes of other ids do not happen.

    A few sorted arrays, each larger than all later ones together.
    """

    def __init__(self) -> None:
        self._arrays: list[_Hashes] = []

    def __len__(self) -> int:
        return sum(array.size for array in self._arrays)

    def add(self, keys: Iterable[object]) -> npt.NDArray[np.bool_]:
        """Adds ids; returns for each whether it was new. The first of equal ones is."""
        hashes = _hash(keys)
        unique, first = np.unique(hashes, return_index=True)
        is_new = np.zeros(hashes.size, np.bool_)
        is_new[first] = ~self._find(unique)
        self._insert(np.sort(hashes[is_new]))
        return is_new

    def contains(self, keys: Iterable[object]) -> npt.NDArray[np.bool_]:
        """Returns for each id whether it is in the set."""
        return self._find(_hash(keys))

    def _find(self, hashes: _Hashes) -> npt.NDArray[np.bool_]:
        found = np.zeros(hashes.size, np.bool_)
        for array in self._arrays:
            positions = np.minimum(np.searchsorted(array, hashes), array.size - 1)
            found |= array[positions] == hashes
        return found

    def _insert(self, hashes: _Hashes) -> None:
        if not hashes.size:
            return
        self._arrays.append(hashes)
        while len(self._arrays) > 1 and self._arrays[-2].size <= 2 * self._arrays[-1].size:
            last, previous = self._arrays.pop(), self._arrays.pop()
            merged = np.concatenate([previous, last])
            merged.sort(kind="stable")
            self._arrays.append(merged)


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
