"""Says what differs between two outputs: tables of texts, for terminals, Markdown and pages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mediamill.jobs.diff.samples import Sample, Samples
from mediamill.jobs.page.page import percent
from mediamill.pipeline.diff.compare import LENGTH_SUFFIX, Change, Difference
from mediamill.pipeline.diff.settings import Setting
from mediamill.pipeline.diff.shifts import Shift
from mediamill.schemas import columns as c


@dataclass(frozen=True)
class Table:
    """A table of texts. title: what its rows are. Numbers lie in all columns but the first."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(difference: Difference, samples: Samples) -> list[Table]:
    """Returns what differs, one table for each respect; none for what is the same."""
    made = [
        _settings(difference),
        _rows(difference, samples),
        _statuses(difference, samples),
        _answers(difference),
        _shifts(difference),
        _receipts(difference, samples),
    ]
    return [table for table in made if table.rows]


def same(difference: Difference) -> str:
    """Returns what is the same, in one line."""
    words = []
    if not difference.settings and difference.same_settings:
        words.append("settings")
    if not (difference.columns_a or difference.columns_b):
        words.append("columns")
    if not difference.both:
        return "; ".join(words)
    if not (difference.only_a.rows or difference.only_b.rows):
        words.append(f"ids of all {difference.both:,} rows")
    if not difference.statuses:
        words.append("statuses")
    names = {"text": difference.texts, "field": difference.fields}
    for kind, changes in names.items():
        equal = [name for name, change in changes.items() if not change.rows]
        if equal:
            words.append(", ".join(name if name == c.TEXT else f"{kind} {name}" for name in equal))
    if difference.compared.scores and not difference.rankings.rows:
        words.append("rankings")
    if difference.compared.vectors and not difference.vectors.rows:
        words.append("vectors")
    if difference.receipts and not any(change.rows for change in difference.receipts.values()):
        words.append("what the model saw")
    others = [name for name, change in difference.others.items() if not change.rows]
    return "; ".join([*words, *others])


def headline(difference: Difference) -> str:
    """Returns the one sentence about the answers."""
    if not difference.differs:
        return f"no differences: {difference.both:,} rows are the same in both outputs"
    answers = difference.answers
    if not difference.both:
        return "the outputs share no row: no id is in both"
    if not difference.ok_both:
        return "no row is ok in both outputs"
    share = percent(answers.share)
    if not answers.rows:
        return f"all {difference.ok_both:,} rows that are ok in both have the same answer"
    text = f"{answers.rows:,} of {difference.ok_both:,} rows ({share}) have another answer"
    if difference.explained:
        text += (
            f"; in {difference.explained:,} of these the model also saw something else or was "
            "asked something else"
        )
    return text


def notes(difference: Difference) -> Iterator[str]:
    """Yields what a reader should know of the comparison."""
    if difference.id_types[0] != difference.id_types[1]:
        kinds = " and ".join(difference.id_types)
        yield f"ids have different types ({kinds}): they were compared by their digits"
    if not difference.same_settings and not difference.settings:
        yield "neither output has a log, so their settings are unknown"
    for name in "ab":
        count = getattr(difference, f"duplicates_{name}")
        if count:
            rows = "1 row" if count == 1 else f"{count:,} rows"
            yield f"{name.upper()} has {rows} with the id of an earlier row: left out here"
    if difference.addresses:
        yield f"{difference.addresses:,} rows name their medium by another uri"
    if difference.layout_a.job != difference.layout_b.job:
        yield f"A is a job {difference.layout_a.job}, B a job {difference.layout_b.job}"


def _settings(difference: Difference) -> Table:
    rows = [_setting(setting) for setting in difference.settings]
    for side, names in (("A", difference.columns_a), ("B", difference.columns_b)):
        if names:
            cells = (", ".join(names), "") if side == "A" else ("", ", ".join(names))
            rows.append((f"columns of {side} only", *cells))
    return Table("Settings", ("setting", "A", "B"), tuple(rows))


def _setting(setting: Setting) -> tuple[str, ...]:
    name = setting.name if setting.decides else f"{setting.name} (not in the fingerprint)"
    return (name, _short(setting.a), _short(setting.b))


def _rows(difference: Difference, samples: Samples) -> Table:
    rows = []
    sides = (("A", difference.only_a, samples.only_a), ("B", difference.only_b, samples.only_b))
    for name, change, examples in sides:
        if change.rows:
            rows.append((f"only in {name}", f"{change.rows:,}", _ids(examples)))
    if rows:
        rows.insert(0, ("in both", f"{difference.both:,}", ""))
    return Table("Rows", ("rows", "count", "such as"), tuple(rows))


def _statuses(difference: Difference, samples: Samples) -> Table:
    changes = sorted(difference.statuses.items(), key=lambda item: -item[1].rows)
    rows = [
        (f"{first} → {second}", f"{change.rows:,}", _ids(samples.statuses[first, second]))
        for (first, second), change in changes
    ]
    return Table("Statuses", ("status", "rows", "such as"), tuple(rows))


def _answers(difference: Difference) -> Table:
    entries: list[tuple[str, Change]] = [
        *difference.texts.items(),
        *difference.fields.items(),
    ]
    if difference.compared.scores:
        entries += [("best text", difference.best), ("ranking or its texts", difference.rankings)]
    if difference.compared.vectors:
        entries.append(("vector", difference.vectors))
    entries += [(f"{name} of the row", change) for name, change in difference.others.items()]
    rows = [
        (name, f"{change.rows:,}", percent(change.share)) for name, change in entries if change.rows
    ]
    if difference.cosines and difference.vectors.rows:
        low, middle = np.quantile(difference.cosines, (0.05, 0.5))
        text = f"median {middle:.4f}, 5 % below {low:.4f}"
        rows.append((f"cosine of {len(difference.cosines):,} pairs", text, ""))
    return Table("Changed answers", ("column", "rows", "share"), tuple(rows))


def _shifts(difference: Difference) -> Table:
    rows = tuple(
        (
            measure_name(name),
            f"{shift.changed:,}",
            _number(shift.mean_a),
            _number(shift.mean_b),
            f"{_signed(shift.shift)} [{_signed(shift.low)}, {_signed(shift.high)}]",
            f"{_number(shift.median_a)} → {_number(shift.median_b)}",
        )
        for name, shift in difference.shifts.items()
        if shift.changed
    )
    head = ("per row", "changed", "mean A", "mean B", "shift [95 %]", "median")
    return Table("Shifts", head, rows)


def _receipts(difference: Difference, samples: Samples) -> Table:
    rows = tuple(
        (name, f"{change.rows:,}", _ids(samples.receipts[name]))
        for name, change in difference.receipts.items()
        if change.rows
    )
    return Table("What the model saw", ("receipts", "rows", "such as"), rows)


def measure_name(name: str) -> str:
    """Returns the name of a number for people."""
    if name.endswith(LENGTH_SUFFIX):
        return f"{name.removesuffix(LENGTH_SUFFIX)}, letters"
    return name.replace("_", " ").replace("mean logprob", "log-probability")


def shift_dict(shift: Shift) -> dict[str, Any]:
    """Returns a shift with the keys of --json."""
    return {
        "rows": shift.rows,
        "changed": shift.changed,
        "mean_a": shift.mean_a,
        "mean_b": shift.mean_b,
        "shift": shift.shift,
        "low": shift.low,
        "high": shift.high,
        "median_a": shift.median_a,
        "median_b": shift.median_b,
    }


def difference_dict(difference: Difference, samples: Samples) -> dict[str, Any]:
    """Returns the comparison with the keys that docs/diff.md lists."""

    def changes(group: Mapping[str, Change]) -> dict[str, Any]:
        return {n: {"rows": change.rows, "share": change.share} for n, change in group.items()}

    def ids(examples: Any) -> list[str]:
        return [sample.id for sample in examples]

    own = difference
    cosines = np.quantile(own.cosines, (0.05, 0.5)).tolist() if own.cosines else None
    return {
        "event": "diff",
        "differs": own.differs,
        "rows": {
            "a": own.rows_a,
            "b": own.rows_b,
            "both": own.both,
            "ok_in_both": own.ok_both,
            "only_a": own.only_a.rows,
            "only_b": own.only_b.rows,
            "duplicates_a": own.duplicates_a,
            "duplicates_b": own.duplicates_b,
        },
        "errors": {"a": own.errors_a, "b": own.errors_b},
        "examples": {"only_a": ids(samples.only_a), "only_b": ids(samples.only_b)},
        "settings": [
            {"name": s.name, "a": s.a, "b": s.b, "decides": s.decides} for s in own.settings
        ],
        "columns": {"only_a": own.columns_a, "only_b": own.columns_b},
        "statuses": [
            {"a": a, "b": b, "rows": change.rows, "examples": ids(samples.statuses[a, b])}
            for (a, b), change in own.statuses.items()
        ],
        "answers": {
            "rows": own.answers.rows,
            "share": own.answers.share,
            "explained": own.explained,
            "texts": changes(own.texts),
            "fields": changes(own.fields),
            "asked": changes(own.others),
            "addresses": own.addresses,
        },
        "scores": {"best": own.best.rows, "rankings": own.rankings.rows}
        if own.compared.scores
        else None,
        "vectors": {"rows": own.vectors.rows, "cosine_5_percent": cosines and cosines[0],
                    "cosine_median": cosines and cosines[1]}
        if own.compared.vectors
        else None,
        "receipts": changes(own.receipts),
        "shifts": {name: shift_dict(shift) for name, shift in own.shifts.items()},
        "notes": list(notes(own)),
    }  # fmt: skip


def _ids(examples: Any) -> str:
    shown: list[Sample] = list(examples)[:3]
    return ", ".join(_short(sample.id, 40) for sample in shown)


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _signed(value: float) -> str:
    text = _number(value)
    return text if text.startswith("-") else f"+{text}"
