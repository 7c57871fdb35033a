"""Counts all rows of an output in one pass, in constant memory, and chooses rows to show."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mediamill.pipeline.inspect.answers import AnswerColumns, AnswerLayout, answer_layout
from mediamill.pipeline.inspect.histogram import Histogram
from mediamill.pipeline.inspect.output import Chunk, Output, Position, shown_value
from mediamill.pipeline.inspect.repeats import RepeatedTexts
from mediamill.pipeline.inspect.samples import Least, Strata, Values
from mediamill.pipeline.quality.findings import findings
from mediamill.schemas import columns as c

TRUTH = "truth"  # the user's column with the expected text, if there is one
SECONDS = "seconds"
_MAX_GROUPS = 2000
OTHER_GROUPS = "all others"
_EXTREMES, _EXAMPLES = 12, 8
_EXAMINED = 100_000  # answers, roughly, that the detectors look at
_PARTITION_STRATA, _SIZE_STRATA = 100, 32
_TOKENS = (c.PROMPT_TOKENS, c.VISUAL_TOKENS, c.OUTPUT_TOKENS)


@dataclass
class GroupCounts:
    """Rows of one partition. compared: ok rows that have a truth; matches: whose text equals it."""

    name: str
    rows: int = 0
    ok: int = 0
    compared: int = 0
    matches: int = 0

    @property
    def match_rate(self) -> float | None:
        """Share of exact matches, 0..1; None when no row could be compared."""
        return self.matches / self.compared if self.compared else None


@dataclass
class Statistics:
    """The counts of an output, and positions of rows that show them.

    findings: rows by what may be wrong with their answer, of `examined` rows.
    sample: rows to show by tag: a finding, `unsure` (the least log-probability), `long` (the most
        letters) and `error:CODE`. strata: for a random sample of the ok rows.
    """

    layout: AnswerLayout
    partition_columns: tuple[str, ...] = ()
    groups: dict[str, GroupCounts] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    examined: int = 0
    repeats: RepeatedTexts = field(default_factory=RepeatedTexts)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    fingerprints: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    strata: Strata = field(default_factory=Strata)
    extremes: dict[str, Least] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Error rows included."""
        return sum(group.rows for group in self.groups.values())

    @property
    def ok(self) -> int:
        return sum(group.ok for group in self.groups.values())

    @property
    def compared(self) -> int:
        return sum(group.compared for group in self.groups.values())

    @property
    def matches(self) -> int:
        return sum(group.matches for group in self.groups.values())

    @property
    def sample(self) -> dict[str, list[Position]]:
        return {tag: least.positions for tag, least in self.extremes.items()}


def count(output: Output) -> Statistics:
    """Counts all rows. Of a large output, the answers of every n-th row are examined."""
    counter = _Counter(output)
    for chunk in output.chunks(counter.columns):
        counter.add(chunk)
    return counter.statistics


class _Counter:
    def __init__(self, output: Output) -> None:
        self._layout = layout = answer_layout(output)
        self._step = max(1, (output.finished or 0) // _EXAMINED)
        self.statistics = Statistics(layout, output.partition_columns)
        answers = [
            name
            for answer in layout.answers
            for name in (answer.text, answer.finish_reason, answer.mean_logprob)
            if name is not None
        ]
        plain = (
            c.STATUS,
            c.ERROR_CODE,
            c.DUPLICATE_OF,
            *_TOKENS,
            c.HEIGHT,
            c.WIDTH,
            c.FRAME_TIMES_S,
        )
        names = (*plain, *answers, TRUTH, SECONDS, c.MODEL, c.FINGERPRINT, c.RUN_ID)
        self.columns = [name for name in dict.fromkeys(names) if name in output.schema.names]
        self._partitions: dict[str, int] = {}

    def add(self, chunk: Chunk) -> None:
        table, total = chunk.table, chunk.table.num_rows
        if not total:
            return
        ok = (
            _booleans(pc.equal(table[c.STATUS], c.STATUS_OK))
            if c.STATUS in table.column_names
            else np.ones(total, bool)
        )
        rows = np.arange(chunk.first, chunk.first + total)
        random = np.random.default_rng([chunk.file, chunk.first])
        priorities = random.random(total)
        self._count_group(chunk, table, ok)
        self._count_errors(chunk, table, ok, rows, priorities)
        self._count_columns(table, ok)
        strata = self._strata(chunk, table, ok)
        self.statistics.strata.add(strata[ok], priorities[ok], chunk.file, rows[ok])
        for answer in self._layout.answers:
            self._count_answer(answer, chunk, table, ok, rows, priorities)
        self.statistics.examined += int(ok[rows % self._step == 0].sum())

    def _count_group(self, chunk: Chunk, table: pa.Table, ok: npt.NDArray[np.bool_]) -> None:
        name = group_name(chunk.partitions)
        groups = self.statistics.groups
        if name not in groups and len(groups) >= _MAX_GROUPS:
            name = OTHER_GROUPS
        group = groups.setdefault(name, GroupCounts(name))
        group.rows += len(ok)
        group.ok += int(ok.sum())
        truth = self._truth(chunk, table)
        if truth is None or c.TEXT not in table.column_names:
            return
        known = ok & _booleans(pc.is_valid(truth))
        group.compared += int(known.sum())
        group.matches += int((known & _booleans(pc.equal(table[c.TEXT], truth))).sum())

    @staticmethod
    def _truth(chunk: Chunk, table: pa.Table) -> Any:
        if TRUTH in table.column_names:
            column = table[TRUTH]
            return column.cast(pa.string()) if not pa.types.is_nested(column.type) else None
        return None

    def _count_errors(
        self,
        chunk: Chunk,
        table: pa.Table,
        ok: npt.NDArray[np.bool_],
        rows: Any,
        priorities: Values,
    ) -> None:
        if ok.all() or c.ERROR_CODE not in table.column_names:
            return
        codes = np.array([code or "unknown" for code in table[c.ERROR_CODE].to_pylist()], object)
        for code in sorted(set(codes[~ok].tolist())):
            inside = ~ok & (codes == code)
            self.statistics.errors[code] += int(inside.sum())
            self._keep(f"error:{code}", priorities[inside], chunk.file, rows[inside])

    def _count_columns(self, table: pa.Table, ok: npt.NDArray[np.bool_]) -> None:
        statistics = self.statistics
        made = np.ones(table.num_rows, bool)
        if c.DUPLICATE_OF in table.column_names:  # the engine made no tokens for a copy
            made = ~_booleans(pc.is_valid(table[c.DUPLICATE_OF]))
        for name in _TOKENS:
            if name in table.column_names:
                values = _numbers(table[name])
                statistics.tokens[name] += int(np.nansum(values[made]))
                self._histogram(name, values[ok])
        if SECONDS in table.column_names and _is_number(table[SECONDS].type):
            self._histogram(SECONDS, _numbers(table[SECONDS])[ok], step=0.01)
        for name, counts in (
            (c.MODEL, statistics.models),
            (c.FINGERPRINT, statistics.fingerprints),
            (c.RUN_ID, statistics.runs),
        ):
            if name in table.column_names:
                for value, number in _value_counts(table[name]):
                    if value in counts or len(counts) < _MAX_GROUPS:
                        counts[value] += number

    def _strata(
        self, chunk: Chunk, table: pa.Table, ok: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        """A number for each row, by partition, kind and size."""
        folder = group_name(chunk.partitions)
        partition = self._partitions.setdefault(folder, len(self._partitions) % _PARTITION_STRATA)
        names, total = table.column_names, table.num_rows
        area, kind = np.zeros(total), np.zeros(total)
        if c.HEIGHT in names and c.WIDTH in names:
            area = np.nan_to_num(_numbers(table[c.HEIGHT]) * _numbers(table[c.WIDTH]))
            kind = np.where(area > 0, 1.0, 0.0)
        if c.FRAME_TIMES_S in names:
            frames = np.nan_to_num(_numbers(pc.list_value_length(table[c.FRAME_TIMES_S])))
            kind = np.where(frames > 0, 2.0, kind)
        for number, name in enumerate(("without media", "pictures", "videos")):
            if rows := int((ok & (kind == number)).sum()):
                self.statistics.kinds[name] += rows
        size = np.minimum(np.log2(np.maximum(area, 1.0)), _SIZE_STRATA - 1).astype(np.int64)
        strata: npt.NDArray[np.int64] = (
            partition * 3 + kind.astype(np.int64)
        ) * _SIZE_STRATA + size
        return strata

    def _count_answer(
        self,
        answer: AnswerColumns,
        chunk: Chunk,
        table: pa.Table,
        ok: npt.NDArray[np.bool_],
        rows: npt.NDArray[np.int64],
        priorities: Values,
    ) -> None:
        if answer.mean_logprob in table.column_names:
            logprobs = np.where(ok, _numbers(table[answer.mean_logprob]), np.nan)
            self._histogram("mean_logprob", logprobs, low=-20.0, step=0.001)
            self._extreme("unsure", logprobs, chunk.file, rows)
        if answer.text not in table.column_names or self._layout.job == "score":
            return
        texts = table[answer.text]
        letters = np.where(ok, _numbers(pc.utf8_length(texts)), np.nan)
        self._histogram("letters", letters)
        self._extreme("long", -letters, chunk.file, rows)
        shown = texts.filter(pa.array(ok))
        self.statistics.repeats.add(_value_counts(shown))
        for index, names in self._findings(answer, table, ok & (rows % self._step == 0)):
            for name in names:
                self.statistics.findings[name] += 1
                self._keep(name, priorities[index : index + 1], chunk.file, rows[index : index + 1])

    def _findings(
        self, answer: AnswerColumns, table: pa.Table, examined: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[int, tuple[str, ...]]]:
        total = table.num_rows

        def column(name: str | None) -> list[Any]:
            return _values(table[name]) if name in table.column_names else [None] * total

        values = zip(
            column(answer.text), column(answer.finish_reason), column(answer.mean_logprob),
            strict=True,
        )  # fmt: skip
        for index, (is_examined, row) in enumerate(zip(examined.tolist(), values, strict=True)):
            if is_examined and (names := findings(*row)):
                yield index, names

    def _histogram(self, name: str, values: Values, low: float = 0.0, step: float = 1.0) -> None:
        self.statistics.histograms.setdefault(name, Histogram(low, step)).add(values)

    def _extreme(self, tag: str, values: Values, file: int, rows: npt.NDArray[np.int64]) -> None:
        self.statistics.extremes.setdefault(tag, Least(_EXTREMES)).add(values, file, rows)

    def _keep(self, tag: str, values: Values, file: int, rows: npt.NDArray[np.int64]) -> None:
        self.statistics.extremes.setdefault(tag, Least(_EXAMPLES)).add(values, file, rows)


def group_name(partitions: Any) -> str:
    """The name of a partition: its values; "none" for a null, "all" without partitions."""
    return ", ".join("none" if v is None else str(v) for v in partitions.values()) or "all"


def _booleans(column: Any) -> npt.NDArray[np.bool_]:
    values = pc.fill_null(column, False)
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def _numbers(column: Any) -> Values:
    """Values as float64; NaN for null."""
    if not _is_number(column.type):
        return np.full(len(column), math.nan)
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _value_counts(column: Any) -> list[tuple[str, int]]:
    if not len(column) or not (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        return []
    counts = pc.value_counts(column)
    pairs = zip(_values(counts.field(0)), counts.field(1).to_pylist(), strict=True)
    return [(value, number) for value, number in pairs if value is not None]


def _values(column: Any) -> list[Any]:
    """The values of a column; texts that are not UTF-8 are shown with marks."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [shown_value(value) for value in column]
