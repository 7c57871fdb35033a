"""Compares two outputs: joins their rows by id in memory that does not grow with them."""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from mediamill.pipeline.diff.buckets import Buckets
from mediamill.pipeline.diff.row_records import (
    BEST,
    CODE,
    FILE,
    FRAMES,
    KEY,
    LETTERS,
    ROW,
    Compared,
    Records,
    Side,
)
from mediamill.pipeline.diff.settings import Setting, columns_of_one, settings
from mediamill.pipeline.diff.shifts import SAMPLE, Pairs, Shift, shifts_of
from mediamill.pipeline.inspect.answers import AnswerLayout, answer_layout
from mediamill.pipeline.inspect.output import Output, Position
from mediamill.schemas import columns as c

EXAMPLES = 5  # of rows in one output only, and of each change of status
_VECTORS = 2000  # whose cosine is computed
_LOGPROB_NOISE = 1e-3  # differences up to it are those of numbers, not of answers
_THREADS = 16

Pair = tuple[Position | None, Position | None]  # of a row, in A and in B


@dataclass
class Change:
    """Rows that differ in one respect, with some of them. of: rows that could differ."""

    rows: int = 0
    of: int = 0
    examples: list[Pair] = field(default_factory=list)

    def add(self, a: Records, b: Records, differs: npt.NDArray[np.bool_], most: int) -> None:
        """Takes rows of both outputs, in the same order. most: examples, at most."""
        self.rows += int(differs.sum())
        self.of += len(differs)
        for place in np.flatnonzero(differs)[: most - len(self.examples)].tolist():
            self.examples.append((_position(a[place]), _position(b[place])))

    @property
    def share(self) -> float:
        """The share of the rows that differ."""
        return self.rows / self.of if self.of else 0.0


@dataclass
class Difference:
    """What differs between the outputs A and B.

    both: rows in both. only_a, only_b: in one only. duplicates_a, duplicates_b: rows whose id the
    output has before; they are left out.
    statuses: from and to (`ok` or an error code). texts, fields, others: by column, of rows that
    are ok in both. rankings, best: of scores. vectors: embeddings. cosines: of some that differ.
    receipts: by what the model saw differently. explained: changed answers of rows whose receipt,
    medium or own prompt changed too. answers: rows with another answer in any column.
    addresses: rows that name their medium in another way, which is no difference.
    """

    layout_a: AnswerLayout
    layout_b: AnswerLayout
    compared: Compared
    settings: list[Setting]
    same_settings: int
    columns_a: list[str]
    columns_b: list[str]
    id_types: tuple[str, str]
    rows_a: int = 0
    rows_b: int = 0
    errors_a: int = 0
    errors_b: int = 0
    both: int = 0
    ok_both: int = 0
    only_a: Change = field(default_factory=Change)
    only_b: Change = field(default_factory=Change)
    duplicates_a: int = 0
    duplicates_b: int = 0
    statuses: dict[tuple[str, str], Change] = field(default_factory=dict)
    texts: dict[str, Change] = field(default_factory=dict)
    fields: dict[str, Change] = field(default_factory=dict)
    others: dict[str, Change] = field(default_factory=dict)
    receipts: dict[str, Change] = field(default_factory=dict)
    rankings: Change = field(default_factory=Change)
    best: Change = field(default_factory=Change)
    vectors: Change = field(default_factory=Change)
    cosines: tuple[float, ...] = ()
    answers: Change = field(default_factory=Change)
    explained: int = 0
    addresses: int = 0
    shifts: dict[str, Shift] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether anything does that decides answers, or follows from them.

        Noise of log-probabilities does not, nor do addresses and settings such as `resources`.
        """
        groups = (self.texts, self.fields, self.others, self.receipts)
        changes = [change for group in groups for change in group.values()]
        changes += [self.only_a, self.only_b, self.rankings, self.vectors]
        return bool(
            any(setting.decides for setting in self.settings)
            or self.columns_a
            or self.columns_b
            or self.statuses
            or self.duplicates_a != self.duplicates_b
            or any(change.rows for change in changes)
            or any(shift.changed for shift in self.shifts.values())
        )


def compare(
    a: Output,
    b: Output,
    samples: int,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Difference:
    """Returns what differs. samples: changed answers, with their places in both outputs.

    Writes about 150 bytes for each row to temporary files.
    """
    layouts = answer_layout(a), answer_layout(b)
    compared = Compared.of((a, layouts[0]), (b, layouts[1]))
    different, same = settings(a, b)
    types = str(a.schema.field(c.ID).type), str(b.schema.field(c.ID).type)
    result = Difference(*layouts, compared, different, same, *columns_of_one(a, b), types)
    sides = Side(a), Side(b)
    rows = [_rows(side.output) for side in sides]
    limit = int(2**64 * min(1.0, _VECTORS / max(1, *rows))) - 1
    with tempfile.TemporaryDirectory(prefix="mediamill-diff-") as folder:
        buckets = []
        for name, side in zip("AB", sides, strict=True):
            side.vector_limit = limit
            bucket = Buckets(Path(folder) / name, max(rows), compared.dtype)
            on_progress(f"reading {name}")
            bucket.write(side.records(compared))
            buckets.append(bucket)
        on_progress("comparing")
        joiner = _Joiner(result, sides, samples, -(-SAMPLE // buckets[0].count))
        for number in range(buckets[0].count):
            joiner.join(*(bucket.read(number) for bucket in buckets))
    result.rows_a, result.rows_b = sides[0].rows, sides[1].rows
    result.errors_a, result.errors_b = sides[0].errors, sides[1].errors
    result.shifts = shifts_of(joiner.pairs)
    result.cosines = _cosines(*sides)
    return result


class _Joiner:
    """Compares one bucket after the other."""

    def __init__(
        self, result: Difference, sides: tuple[Side, Side], samples: int, sample_pairs: int
    ) -> None:
        self._result, self._sides, self._samples = result, sides, samples
        self._sample_pairs = sample_pairs
        compared = result.compared
        logprobs = (*compared.logprobs, c.PROBABILITY)
        self.pairs = {
            name: Pairs(_LOGPROB_NOISE if name in logprobs else 0.0) for name in compared.measures
        }

    def join(self, in_a: tuple[Records, int], in_b: tuple[Records, int]) -> None:
        result = self._result
        (a, duplicates_a), (b, duplicates_b) = in_a, in_b
        result.duplicates_a += duplicates_a
        result.duplicates_b += duplicates_b
        _, places_a, places_b = np.intersect1d(
            a[KEY], b[KEY], assume_unique=True, return_indices=True
        )
        _add_lonely(result.only_a, a, places_a, lambda position: (position, None))
        _add_lonely(result.only_b, b, places_b, lambda position: (None, position))
        a, b = a[places_a], b[places_b]
        result.both += len(a)
        self._statuses(a, b)
        ok = (a[CODE] == 0) & (b[CODE] == 0)
        a, b = a[ok], b[ok]
        result.ok_both += len(a)
        self._values(a, b)
        for name, pairs in self.pairs.items():
            pairs.add(a[f"number {name}"], b[f"number {name}"], self._sample_pairs)

    def _statuses(self, a: Records, b: Records) -> None:
        first, second = self._sides
        kinds = Counter(zip(a[CODE].tolist(), b[CODE].tolist(), strict=True))
        for code_a, code_b in kinds:
            labels = first.label(code_a), second.label(code_b)
            if labels[0] != labels[1]:
                differs = (a[CODE] == code_a) & (b[CODE] == code_b)
                change = self._result.statuses.setdefault(labels, Change())
                change.add(a, b, differs, EXAMPLES)

    def _values(self, a: Records, b: Records) -> None:
        result, compared = self._result, self._result.compared

        def differ(name: str) -> npt.NDArray[np.bool_]:
            return np.asarray(a[f"hash {name}"] != b[f"hash {name}"])

        changed = np.zeros(len(a), bool)
        for names, group in ((compared.texts, result.texts), (compared.fields, result.fields)):
            for name in names:
                changed |= (own := differ(name))
                group.setdefault(name, Change()).add(a, b, own, self._samples)
        if compared.scores:
            changed |= (own := differ(c.SCORES))
            result.rankings.add(a, b, own, self._samples)
            result.best.add(a, b, differ(BEST), self._samples)
        if compared.vectors:
            own = differ(c.EMBEDDING)
            result.vectors.add(a, b, own, self._samples)
            changed |= own
        causes = np.zeros(len(a), bool)
        for name in compared.others:
            own = differ(name)
            if name == c.URI:  # the same file may lie elsewhere: its hash tells
                result.addresses += int(own.sum())
                continue
            causes |= own
            result.others.setdefault(name, Change()).add(a, b, own, EXAMPLES)
        for name, own in self._receipts(a, b, differ):
            causes |= own
            result.receipts.setdefault(name, Change()).add(a, b, own, EXAMPLES)
        result.answers.add(a, b, changed, self._samples)
        result.explained += int((changed & causes).sum())

    def _receipts(
        self, a: Records, b: Records, differ: Callable[[str], npt.NDArray[np.bool_]]
    ) -> Sequence[tuple[str, npt.NDArray[np.bool_]]]:
        compared = self._result.compared

        def number(name: str) -> npt.NDArray[np.bool_]:
            first, second = a[f"number {name}"], b[f"number {name}"]
            both_missing = np.isnan(first) & np.isnan(second)
            return np.asarray((first != second) & ~both_missing)

        found = []
        if c.SHA256 in compared.hashed:
            found.append(("media are other files", differ(c.SHA256)))
        if {c.HEIGHT, c.WIDTH} <= set(compared.numbers):
            found.append(("seen at another size", number(c.HEIGHT) | number(c.WIDTH)))
        if FRAMES in compared.numbers:
            frames = number(FRAMES)
            found.append(("another number of frames", frames))
            found.append(("frames at other times", differ(c.FRAME_TIMES_S) & ~frames))
        if c.VISUAL_TOKENS in compared.numbers:
            found.append(("another number of visual tokens", number(c.VISUAL_TOKENS)))
        if c.RECEIPT in compared.hashed:
            found.append(("other pixels", differ(c.RECEIPT)))
        return found


def _add_lonely(
    change: Change,
    records: Records,
    paired: npt.NDArray[np.int64],
    pair: Callable[[Position], Pair],
) -> None:
    alone = np.ones(len(records), bool)
    alone[paired] = False
    change.rows += int(alone.sum())
    change.of += len(records)
    for place in np.flatnonzero(alone)[: EXAMPLES - len(change.examples)].tolist():
        change.examples.append(pair(_position(records[place])))


def _position(record: np.void) -> Position:
    return int(record[FILE]), int(record[ROW])


def _cosines(a: Side, b: Side) -> tuple[float, ...]:
    """The cosines of the sampled vectors of rows that both have, of one length."""
    cosines = []
    for key, first in a.vectors.items():
        second = b.vectors.get(key)
        if second is not None and first.shape == second.shape:
            norm = float(np.linalg.norm(first) * np.linalg.norm(second))
            if norm > 0:
                cosines.append(float(first @ second) / norm)
    return tuple(sorted(cosines))


def _rows(output: Output) -> int:
    def count(name: str) -> int:
        place = output.files[name]
        try:
            with place.fs.open(place.path, "rb") as opened:
                return int(pq.read_metadata(opened).num_rows)
        except FileNotFoundError:  # a compaction has replaced it
            return 0

    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(count, output.names))


LENGTH_SUFFIX = f".{LETTERS}"
