"""Reads the rows that a comparison shows: their values in both outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mediamill.jobs.page.row_card import columns_of_cards, text_of
from mediamill.pipeline.diff.compare import Difference, Pair
from mediamill.pipeline.inspect.output import Output
from mediamill.schemas import columns as c


@dataclass(frozen=True)
class Sample:
    """A row of A and of B; one of them is empty if only the other output has it."""

    a: Mapping[str, Any]
    b: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Of the row."""
        return text_of((self.a or self.b).get(c.ID))


@dataclass(frozen=True)
class Samples:
    """Rows by what differs: other answers, statuses by change, and rows of one output alone."""

    answers: Sequence[Sample]
    statuses: Mapping[tuple[str, str], Sequence[Sample]]
    only_a: Sequence[Sample]
    only_b: Sequence[Sample]
    receipts: Mapping[str, Sequence[Sample]]


def read_samples(a: Output, b: Output, difference: Difference) -> Samples:
    """Reads them; of rows that are gone meanwhile (a compaction replaced their file) none."""
    groups: dict[Any, Sequence[Pair]] = {
        "answers": difference.answers.examples,
        "only_a": difference.only_a.examples,
        "only_b": difference.only_b.examples,
        **{change: entry.examples for change, entry in difference.statuses.items()},
        **{("receipt", name): entry.examples for name, entry in difference.receipts.items()},
    }
    pairs = [pair for examples in groups.values() for pair in examples]
    columns = (
        columns_of_cards(difference.layout_a, a.schema.names),
        columns_of_cards(difference.layout_b, b.schema.names),
    )
    rows_a = a.rows([pair[0] for pair in pairs if pair[0] is not None], columns[0])
    rows_b = b.rows([pair[1] for pair in pairs if pair[1] is not None], columns[1])

    def samples(examples: Sequence[Pair]) -> list[Sample]:
        chosen = []
        for in_a, in_b in examples:
            row_a = rows_a.get(in_a, {}) if in_a is not None else {}
            row_b = rows_b.get(in_b, {}) if in_b is not None else {}
            if row_a or row_b:
                chosen.append(Sample(row_a, row_b))
        return chosen

    return Samples(
        samples(groups["answers"]),
        {change: samples(groups[change]) for change in difference.statuses},
        samples(groups["only_a"]),
        samples(groups["only_b"]),
        {name: samples(groups["receipt", name]) for name in difference.receipts},
    )


def answer_texts(sample: Sample, difference: Difference) -> list[tuple[str, str, str]]:
    """Returns what differs in the answers of a row: a name, and the texts of A and B."""
    entries = []
    compared = difference.compared
    names = [*compared.fields] or [*compared.texts]
    shown = [name for name in names if sample.a.get(name) != sample.b.get(name)]
    if not shown:  # a JSON answer whose text alone differs
        shown = [n for n in compared.texts if sample.a.get(n) != sample.b.get(n)]
    for name in shown:
        label = "" if name == c.TEXT else name
        entries.append((label, text_of(sample.a.get(name)), text_of(sample.b.get(name))))
    if compared.scores and sample.a.get(c.SCORES) != sample.b.get(c.SCORES):
        entries.append(("ranking", _ranking(sample.a), _ranking(sample.b)))
    return entries


def _ranking(row: Mapping[str, Any]) -> str:
    scores = sorted(row.get(c.SCORES) or (), key=lambda score: score.get("rank") or 0)
    return ", ".join(
        f"{text_of(score.get('text'))} {score.get('probability') or 0.0:.1%}"
        for score in scores[:8]
    )
