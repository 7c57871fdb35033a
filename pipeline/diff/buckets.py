"""Sorts records by key in files: each bucket holds those whose keys begin with the same bits."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mediamill.pipeline.diff.row_records import KEY, Records

BUCKET_ROWS = 50_000
_MOST = 64  # buckets; each has a file that is open


class Buckets:
    """Records in files below a folder. They lie there in the order in which they came."""

    def __init__(self, folder: Path, rows: int, dtype: np.dtype[Any]) -> None:
        """rows: about how many there will be."""
        self.count = 1
        while self.count < _MOST and self.count * BUCKET_ROWS < rows:
            self.count *= 2
        folder.mkdir()
        self._paths = [folder / f"{number:03}" for number in range(self.count)]
        self._dtype = dtype

    def write(self, parts: Iterable[Records]) -> None:
        """Writes all records."""
        files = [path.open("wb") for path in self._paths]
        try:
            for records in parts:
                shift = np.uint64(65 - self.count.bit_length())
                numbers = (
                    records[KEY] >> shift if self.count > 1 else np.zeros(len(records), np.uint64)
                )
                order = np.argsort(numbers, kind="stable")
                bounds = np.searchsorted(numbers[order], np.arange(self.count + 1))
                ordered = records[order]
                for number, file in enumerate(files):
                    part = ordered[bounds[number] : bounds[number + 1]]
                    if len(part):
                        file.write(part.tobytes())
        finally:
            for file in files:
                file.close()

    def read(self, number: int) -> tuple[Records, int]:
        """Returns the records of a bucket by key, the first of each, and how many more there are.

        Removes the file.
        """
        records: Records = np.fromfile(self._paths[number], self._dtype)
        self._paths[number].unlink()
        keys, first = np.unique(records[KEY], return_index=True)
        return records[first], len(records) - len(keys)
