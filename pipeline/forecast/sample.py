"""Measures a sample of a job's rows: until its totals are precise, or the time is over."""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mediamill.model.errors import ModelError
from mediamill.pipeline.forecast.cheap_values import cheap_sizes, text_lengths
from mediamill.pipeline.forecast.engine_run import EngineRun, EngineTotals
from mediamill.pipeline.forecast.estimates import (
    Estimate,
    Floats,
    Frame,
    allocate,
    divide,
    estimate,
)
from mediamill.pipeline.forecast.measured_rows import MeasuredRow, MeasuredTable, Measurer
from mediamill.pipeline.forecast.pending_rows import Drawn
from mediamill.schemas.errors import ErrorCode, JobError
from mediamill.schemas.job import VideoConfig

PRECISION = 0.005  # half of the interval of the tokens, as a share, at which sampling ends
_OUTPUT_PRECISION, _MIN_ANSWERS = 0.01, 384
_FIRST, _ROUND, _MAX_ROUND = 48, 64, 256  # rows
_TABLE_BYTES = 128 << 20  # of the patches of rows that the engine gets at once
_NAMED = 5  # rows that do not fit, and messages of errors
_TOKENS = re.compile(r"(\d+) (?:tokens long|visual tokens)")
SIZE, TEXT, SAME = "size", "text", "same"  # cheap values


@dataclass(frozen=True)
class RowThatIsTooLong:
    """A row whose prompt has no room in the model's context.

    tokens: of it, or None if it was not tokenized to its end. limit: tokens of the context.
    """

    id: str
    tokens: int | None
    limit: int


@dataclass(frozen=True)
class SampleRules:
    """How a sample is taken.

    seconds: for measuring rows, about. run_rows: rows that the engine answers; None: until the
    answers' length is precise, or `seconds` are over.
    limit: tokens of the model's context; generates: whether an answer needs a place there.
    """

    seconds: float
    run_rows: int | None
    limit: int
    generates: bool


@dataclass(frozen=True)
class SampleResult:
    """What was measured.

    frame_rows: rows of which cheap values are known. rows: measured ones. sorted_by: the cheap
    value that divides the rows; None if there is none.
    units: rows of the result. distinct: the share of rows that are no copies of others.
    errors: rows by code, with one message of each in `messages`.
    output_tokens: None if the engine did not run.
    """

    frame_rows: int
    rows: int
    sorted_by: str | None
    units: Estimate
    bytes: Estimate
    visual_tokens: Estimate
    prompt_tokens: Estimate
    fetch_s: Estimate
    prepare_s: Estimate
    errors: Mapping[str, Estimate]
    messages: Mapping[str, str]
    too_long: Sequence[RowThatIsTooLong]
    longest: int
    distinct: Estimate
    output_tokens: Estimate | None = None
    engine: EngineTotals | None = None
    seconds: float = 0.0

    def times(self, factor: float) -> "SampleResult":
        """Returns the totals of so many times the rows."""
        return replace(
            self,
            units=self.units.times(factor),
            bytes=self.bytes.times(factor),
            visual_tokens=self.visual_tokens.times(factor),
            prompt_tokens=self.prompt_tokens.times(factor),
            fetch_s=self.fetch_s.times(factor),
            prepare_s=self.prepare_s.times(factor),
            output_tokens=self.output_tokens and self.output_tokens.times(factor),
            errors={code: one.times(factor) for code, one in self.errors.items()},
        )

    def without_copies(self) -> "SampleResult":
        """Returns the tokens that the engine works on if copies are answered once."""
        share = self.distinct
        return replace(
            self,
            visual_tokens=self.visual_tokens.product(share),
            prompt_tokens=self.prompt_tokens.product(share),
            output_tokens=self.output_tokens and self.output_tokens.product(share),
        )


_ZERO, _ONE = Estimate.exact(0.0), Estimate.exact(1.0)
NOTHING = SampleResult(  # of a job without a row to do
    0, 0, None, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, {}, {}, (), 0, _ONE, _ZERO
)


@dataclass
class _Collected:
    rows: list[MeasuredRow] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)  # positions in the frame
    outputs: list[float] = field(default_factory=list)


class Sampler:
    """Measures rows of a frame in rounds."""

    def __init__(
        self,
        drawn: Drawn,
        population: int,
        measurer: Measurer,
        rules: SampleRules,
        rng: np.random.Generator,
        video: VideoConfig,
        base: str,
    ) -> None:
        """drawn: random rows. population: rows to do. base: of relative paths."""
        self._table, self._measurer, self._rules, self._rng = drawn.table, measurer, rules, rng
        sizes, self._sorted_by = cheap_sizes(drawn.table, video, base)
        cheap = {SIZE: sizes, TEXT: text_lengths(drawn.table), SAME: np.ones(len(sizes))}
        self._frame = Frame(population, divide(sizes), cheap, drawn.clusters)
        self._collected = _Collected()
        self._left = {
            number: rng.permutation(np.flatnonzero(self._frame.stratum == number)).tolist()
            for number in self._frame.strata
        }

    def take(self, engine: "Future[EngineRun] | None") -> SampleResult:
        """Measures until it is precise. engine: None = no row is answered. Raises JobError."""
        started = time.monotonic()
        tables = self._measure(dict.fromkeys(self._left, 2))  # meanwhile the workers start
        if any(self._left.values()):
            self._collected.rows = [_without_times(row) for row in self._collected.rows]
        run = _loaded(engine)
        began = time.monotonic()
        size = max(1, _FIRST // len(self._left))
        wanted = {number: min(size, len(places)) for number, places in self._left.items()}
        count = _ROUND
        while True:
            tables += self._measure(wanted)
            late = time.monotonic() - began > self._rules.seconds
            answered = run is None or not tables or self._answer(run, tables, late)
            if late or (answered and self._is_precise()):
                break
            tables, wanted = [], self._next(count)
            if not any(wanted.values()):
                break
            count = min(2 * count, _MAX_ROUND)
        return self._result(run, time.monotonic() - started)

    def _next(self, count: int) -> dict[int, int]:
        left = {number: len(places) for number, places in self._left.items()}
        values = self._values(lambda row: row.prompt_tokens)
        wanted = allocate(self._frame, self._rows(), values, left, count)
        rest = count - sum(wanted.values())
        for number, free in left.items():  # what no stratum needs is spread by size
            share = round(rest * free / max(1, sum(left.values())))
            if share > 0:
                wanted[number] = min(free, wanted.get(number, 0) + share)
        return wanted

    def _measure(self, wanted: Mapping[int, int]) -> list[tuple[MeasuredTable, list[int]]]:
        """Measures rows of each stratum apart, so that each has times of its own."""
        results = []
        for number, count in wanted.items():
            places = [self._left[number].pop() for _ in range(min(count, len(self._left[number])))]
            for start in range(0, len(places), _ROUND):
                chosen = sorted(places[start : start + _ROUND])
                measured = self._measurer.measure(self._table.take(pa.array(chosen, pa.int64())))
                self._collected.rows += measured.rows
                self._collected.places += chosen
                results.append((measured, chosen))
        return results

    def _answer(
        self, run: EngineRun, tables: Sequence[tuple[MeasuredTable, list[int]]], late: bool
    ) -> bool:
        """Has the engine answer rows; returns whether it has answered enough."""
        wanted, collected = self._rules.run_rows, self._collected
        spent = run.totals.seconds > self._rules.seconds or (late and bool(collected.outputs))
        if spent if wanted is None else run.totals.rows >= wanted:
            return True
        prepared = [table for measured, _ in tables for table in measured.prepared]
        outputs: list[int] = []
        waiting: list[pa.Table] = []
        for number, table in enumerate(prepared):
            waiting.append(table)
            size = sum(one.nbytes for one in waiting)
            if number == len(prepared) - 1 or size + prepared[number + 1].nbytes > _TABLE_BYTES:
                outputs += run.run(waiting)[0]
                waiting = []
        at = 0
        for measured, chosen in tables:
            own: Counter[int] = Counter()
            for number, weight in zip(measured.numbers, measured.weights, strict=True):
                own[number] += round(outputs[at] * weight)
                at += 1
            collected.answered += chosen
            collected.outputs += [float(own[number]) for number in range(len(chosen))]
        if wanted is not None:
            return run.totals.rows >= wanted
        output = self._output()
        # A few long answers among many short ones do not show in the first rows.
        enough = output is not None and output.relative <= _OUTPUT_PRECISION
        enough = enough and run.totals.rows >= _MIN_ANSWERS
        return late or run.totals.seconds > self._rules.seconds or enough

    def _output(self) -> Estimate | None:
        collected = self._collected
        if not collected.outputs:
            return None
        places = np.array(collected.answered, np.int64)
        return estimate(self._frame, places, np.array(collected.outputs), SIZE)

    def _is_precise(self) -> bool:
        tokens = self._total(lambda row: row.prompt_tokens, TEXT)
        visual = self._total(lambda row: row.visual_tokens, SIZE)
        return tokens.relative <= PRECISION and visual.relative <= PRECISION

    def _rows(self) -> npt.NDArray[np.int64]:
        return np.array(self._collected.places, np.int64)

    def _values(self, value: Callable[[MeasuredRow], float]) -> Floats:
        return np.array([value(row) for row in self._collected.rows], np.float64)

    def _total(self, value: Callable[[MeasuredRow], float], cheap: str) -> Estimate:
        return estimate(self._frame, self._rows(), self._values(value), cheap)

    def _times(self, value: Callable[[MeasuredRow], float]) -> Estimate:
        values = self._values(value)
        known = np.isfinite(values)
        if not known.any():
            return Estimate.exact(0.0)
        return estimate(self._frame, self._rows()[known], values[known], SIZE)

    def _result(self, run: EngineRun | None, seconds: float) -> SampleResult:
        rows, limit = self._collected.rows, self._rules.limit
        codes = sorted({code for row in rows for code in row.errors})
        limit_here = limit - (1 if self._rules.generates else 0)
        too_long = [
            RowThatIsTooLong(row.id, tokens, limit)
            for row in rows
            if (tokens := _tokens_told(row)) is None or tokens > limit_here
        ]
        visual = self._total(lambda row: row.visual_tokens, SIZE)
        text = self._total(lambda row: row.prompt_tokens - row.visual_tokens, TEXT)
        whole = self._total(lambda row: row.prompt_tokens, SIZE)
        parts = Estimate(visual.value + text.value, visual.low + text.low, visual.high + text.high)
        return SampleResult(
            self._frame.rows,
            len(rows),
            self._sorted_by,
            self._total(lambda row: row.units, SIZE),
            self._total(lambda row: row.bytes, SIZE),
            visual,
            parts if parts.relative < whole.relative else whole,
            self._times(lambda row: row.fetch_s),
            self._times(lambda row: row.prepare_s),
            {code: self._code(code) for code in codes},
            {code: next(row.message for row in rows if code in row.errors) for code in codes},
            too_long[:_NAMED],
            max((row.longest for row in rows), default=0),
            self._distinct(),
            self._output(),
            None if run is None else run.totals,
            seconds,
        )

    def _code(self, code: str) -> Estimate:
        total = self._total(lambda row: row.errors.get(code, 0.0), SAME)
        return Estimate(total.value, total.low, total.high)

    def _distinct(self) -> Estimate:
        """The share of rows that are no copies of others, from pairs of copies in the sample."""
        contents = [row.content for row in self._collected.rows if row.content]
        count, all_rows = len(contents), self._frame.population
        if count < 2:
            return Estimate.exact(1.0)
        pairs = sum(n * (n - 1) / 2 for n in Counter(contents).values())
        if count >= all_rows - sum(not row.content for row in self._collected.rows):
            return Estimate.exact(len(set(contents)) / count)
        scale = all_rows * (all_rows - 1) / (count * (count - 1))
        copies, error = pairs * scale, 1.645 * max(1.0, pairs) ** 0.5 * scale

        def share(number: float) -> float:
            return max(0.0, 1.0 - number / all_rows)

        return Estimate(share(copies), share(copies + error), share(max(0.0, copies - error)))


def _tokens_told(row: MeasuredRow) -> int | None:
    """The tokens of a row's longest prompt; of one that was refused, those that its error tells."""
    if ErrorCode.CONTEXT_TOO_LONG.value not in row.errors:
        return row.longest
    match = _TOKENS.search(row.message)
    return int(match[1]) if match else None


def _without_times(row: MeasuredRow) -> MeasuredRow:
    return replace(row, fetch_s=np.nan, prepare_s=np.nan)


def _loaded(engine: "Future[EngineRun] | None") -> EngineRun | None:
    try:
        return None if engine is None else engine.result()
    except ModelError as error:
        raise JobError(str(error)) from error
