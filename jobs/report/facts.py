"""Formats what a report says of all rows: totals, cost, alarms, distributions and runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mediamill.pipeline.inspect.output import Output
from mediamill.pipeline.inspect.statistics import Statistics
from mediamill.pipeline.quality.findings import MEANINGS
from mediamill.schemas import columns as c

_ALWAYS = ("cut_off", "loop", "empty")
_TITLES = {
    "letters": "Letters of a text",
    c.OUTPUT_TOKENS: "Tokens written",
    c.VISUAL_TOKENS: "Visual tokens",
    c.PROMPT_TOKENS: "Prompt tokens",
    "seconds": "Seconds",
    "mean_logprob": "Log-probability of a token",
}


@dataclass(frozen=True)
class Alarm:
    """Answers that may be wrong. shown: whether cards have examples. share: of all answers."""

    name: str
    meaning: str
    rows: int
    share: float
    shown: bool


@dataclass(frozen=True)
class Bin:
    """A bar. height: 0..1 of the highest one. label: its range."""

    label: str
    rows: int
    height: float


@dataclass(frozen=True)
class Shape:
    """A histogram. low, high: the ends of its axis."""

    title: str
    summary: str
    bins: tuple[Bin, ...]
    low: str
    high: str


def facts(
    output: Output,
    statistics: Statistics,
    runs: Sequence[Mapping[str, Any]],
    price: float | None,
) -> list[tuple[str, str]]:
    """Returns names and values for the top of the page."""
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in statistics.kinds.most_common())
    entries = [("Rows", f"{statistics.rows:,}"), ("Media", kinds or "unknown")]
    entries += [
        (f"Prompt {answer.name}".strip(), answer.prompt[:1000])
        for answer in statistics.layout.answers
        if answer.prompt
    ]
    entries.append(("Model", _first(list(statistics.models))))
    entries.append(("Fingerprint", _first(list(statistics.fingerprints))))
    tokens = statistics.tokens
    words = f"{tokens[c.VISUAL_TOKENS]:,} seen, {tokens[c.OUTPUT_TOKENS]:,} written"
    entries.append(("Tokens", words))
    seconds = sum(float(run.get("seconds") or 0.0) for run in runs)
    silent = sum(run.get("seconds") is None for run in runs)
    if runs:
        unknown = f"; {silent} left no time" if silent else ""
        entries.append(("Time", f"{duration(seconds)} in {_runs(len(runs))}{unknown}"))
    else:
        entries.append(("Runs", f"{len(statistics.runs):,}"))
    if price is not None and runs:
        cost = price * seconds / 3600
        rows = max(statistics.rows, 1)
        per_million = f"{cost / rows * 1e6:,.2f} a million rows"
        entries.append(("Cost", f"{cost:,.2f} at {price:g} an hour, {per_million}"))
    return entries


def alarms_of(statistics: Statistics, shown_tags: Iterable[Sequence[str]]) -> list[Alarm]:
    """Returns the counts of what may be wrong, the most frequent first; always the usual kinds."""
    if statistics.layout.job in ("embed", "score") or not statistics.examined:
        return []
    shown = {tag for tags in shown_tags for tag in tags}
    examined = statistics.examined * len(statistics.layout.answers)
    counts = statistics.findings
    names = dict.fromkeys((*(name for name, _ in counts.most_common()), *_ALWAYS))
    alarms = [
        Alarm(name, MEANINGS.get(name, name), counts[name], counts[name] / examined, name in shown)
        for name in names
    ]
    share = statistics.repeats.share
    about = "" if statistics.repeats.is_exact else " (estimated)"
    rows = round(share * statistics.ok * len(statistics.layout.answers))
    return [*alarms, Alarm("repeated", f"another row has the same text{about}", rows, share, False)]


def shapes(statistics: Statistics) -> list[Shape]:
    """Returns the histograms of the columns that have more than one value."""
    entries = []
    for name, title in _TITLES.items():
        histogram = statistics.histograms.get(name)
        bars = () if histogram is None else histogram.bars()
        if histogram is None or len(bars) < 2:
            continue
        digits = 2 if name in ("mean_logprob", "seconds") else 0
        top = max(bar.rows for bar in bars)
        last = len(bars) - 1
        bins = tuple(
            Bin(
                f"{_number(bar.low, digits)} to {_number(bar.high, digits)}",
                bar.rows,
                max(bar.rows / top, 0.01 if bar.rows else 0.0),
            )
            for bar in bars
        )
        middle = _number(histogram.quantile(0.5), digits)
        tail = _number(histogram.quantile(0.95), digits)
        end = "median {}, 19 of 20 up to {}"
        if name == "mean_logprob":
            tail, end = _number(histogram.quantile(0.05), digits), "median {}, 1 of 20 below {}"
        low, high = _number(bars[0].low, digits), _number(bars[last].high, digits)
        if low == high:
            continue
        entries.append(Shape(title, end.format(middle, tail), bins, low, high))
    return entries


def run_cells(run: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Returns the values of a run as texts."""
    return [_cell(name, run.get(name)) for name in columns]


def duration(seconds: float) -> str:
    """Formats a time: 12 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "was killed" if name == "end" else "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{code} {rows:,}" for code, rows in value.items()) or "0"
    if name == "started":
        return str(value)[:19].replace("T", " ")
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-0.00", "0.00")


def _first(values: Sequence[str]) -> str:
    named = [value for value in values if value]
    if not named:
        return "unknown"
    return named[0] if len(named) == 1 else f"{named[0]} and {len(named) - 1} more"
