"""Selects the rows of a run that does not do all of them: `--limit` and `--sample`.

A selection is one bit for each row of the files that it has rows of.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mediamill.pipeline.ledger.state import Bitmap, LedgerState, count_bits
from mediamill.pipeline.manifest.manifest import Manifest
from mediamill.schemas.errors import JobError

_CHUNK_ROWS = 1 << 20  # a multiple of 8
_MAX_DRAWN_ROWS = 10**9  # of a manifest, by the limits of numpy's hypergeometric distribution


@dataclass(frozen=True)
class RowChoice:
    """Which rows a run does; all unfinished ones by default.

    limit: at most so many, the first unfinished ones of the manifest.
    sample: only those unfinished rows that are among so many rows, drawn at random from the whole
        manifest. seed: of the draw: the same manifest and seed draw the same rows each time.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    @property
    def is_all(self) -> bool:
        return self.limit is None and self.sample is None

    def select(self, manifest: Manifest, state: LedgerState) -> "Selection":
        """Returns the selection. The ledger has to know every file of the manifest."""
        if self.is_all:
            return Selection(None, manifest.rows, state.rows_left(manifest.rows))
        redone = 0
        numbers = {file.name: number for number, file in enumerate(state.files)}
        files = [(numbers[file.name], file.rows) for file in manifest.files]
        drawn = None if self.sample is None else self._draw(files)
        left = manifest.rows if self.limit is None else self.limit
        bitmaps: dict[int, Bitmap] = {}
        selected = 0
        for number, rows in files:
            if not left:
                break
            if drawn is not None and number not in drawn:
                continue
            parts = []
            for start, stop in _chunks(rows):
                mask = state.pending(number, start, stop)
                if drawn is not None:
                    mask &= _bits(drawn[number], start, stop)
                wanted = np.flatnonzero(mask)
                mask[wanted[left:]] = False
                left -= min(left, len(wanted))
                parts.append(np.packbits(mask, bitorder="little"))
            bitmap = np.concatenate([*parts, np.empty(0, np.uint8)])
            if count := count_bits(bitmap):
                bitmaps[number] = bitmap
                selected += count
                if number in state.redo:
                    again = state.redo[number]
                    redone += count_bits(again & bitmap[: again.size])
        rows_left, not_again = state.rows_left(manifest.rows), state.rows_to_redo - redone
        return Selection(bitmaps, manifest.rows, rows_left, selected, not_again)

    def _draw(self, files: list[tuple[int, int]]) -> dict[int, Bitmap]:
        """Returns the rows of the sample, by number of the file."""
        rows_left, wanted = sum(rows for _, rows in files), self.sample or 0
        if rows_left >= _MAX_DRAWN_ROWS:
            raise JobError(
                f"--sample: found a manifest of {rows_left} rows, expected less than "
                f"{_MAX_DRAWN_ROWS}: use --limit, or a smaller manifest"
            )
        random = np.random.default_rng(self.seed)
        wanted = min(wanted, rows_left)
        drawn: dict[int, Bitmap] = {}
        for number, rows in files:
            parts = []
            for start, stop in _chunks(rows):
                size = stop - start
                count = int(random.hypergeometric(wanted, rows_left - wanted, size))
                mask = np.zeros(size, np.bool_)
                mask[random.choice(size, count, replace=False, shuffle=False)] = True
                wanted, rows_left = wanted - count, rows_left - size
                parts.append(np.packbits(mask, bitorder="little"))
            bitmap = np.concatenate([*parts, np.empty(0, np.uint8)])
            if bitmap.any():
                drawn[number] = bitmap
        return drawn


ALL_ROWS = RowChoice()


@dataclass(frozen=True)
class Selection:
    """The rows of a run.

    bitmaps: bit i of a file, by its number in the ledger, is set if row i is selected; files that
        are left out have no such row. None: all rows are selected.
    rows: of the manifest. left: those that were to do when the selection was made.
    selected: those among them that are selected, unless all are.
    not_again: error rows that were chosen to be done again, and are not selected.
    """

    bitmaps: Mapping[int, Bitmap] | None
    rows: int
    left: int
    selected: int = 0
    not_again: int = 0

    @property
    def later(self) -> int:
        """Rows without a result that are not selected."""
        return self._others - self.not_again

    @property
    def _others(self) -> int:
        return 0 if self.bitmaps is None else self.left - self.selected

    def missing(self, state: LedgerState) -> int:
        """Returns the number of selected rows that are to do now."""
        return state.rows_left(self.rows) - self._others

    def unfinished(self, state: LedgerState, number: int, rows: int) -> int:
        """Returns how many rows of a file, which has so many, are selected and to do."""
        if self.bitmaps is None:
            return state.unfinished(number, rows)
        if number not in self.bitmaps:
            return 0
        chunks = (self.pending(state, number, *chunk) for chunk in _chunks(rows))
        return sum(int(np.count_nonzero(pending)) for pending in chunks)

    def pending(
        self, state: LedgerState, number: int, start: int, stop: int
    ) -> npt.NDArray[np.bool_]:
        """Returns which rows from start to stop of a file are selected and to do."""
        pending = state.pending(number, start, stop)
        if self.bitmaps is None:
            return pending
        if number not in self.bitmaps:
            return np.zeros_like(pending)
        return pending & _bits(self.bitmaps[number], start, stop)


def _chunks(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, _CHUNK_ROWS):
        yield start, min(start + _CHUNK_ROWS, rows)


def _bits(bitmap: Bitmap, start: int, stop: int) -> npt.NDArray[np.bool_]:
    """Returns the bits from start to stop: [stop - start]."""
    first = start // 8
    bits = np.unpackbits(bitmap[first : -(-stop // 8)], bitorder="little")
    return bits[start - first * 8 : stop - first * 8].astype(np.bool_)
