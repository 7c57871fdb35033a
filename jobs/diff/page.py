"""Writes the page of a comparison: its tables, and rows that differ beside their pictures."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mediamill.jobs.diff.facts import headline, notes, same, tables
from mediamill.jobs.diff.samples import Sample, Samples, answer_texts
from mediamill.jobs.diff.words import page_words
from mediamill.jobs.page.card import Answer, Card
from mediamill.jobs.page.page import render, write
from mediamill.jobs.page.row_card import row_card
from mediamill.pipeline.diff.compare import Difference
from mediamill.pipeline.inspect.seen import SeenMedium, SeenReader, ShownSize
from mediamill.schemas import columns as c

TEMPLATE = Path(__file__).parent / "templates" / "diff.html.jinja"
_PICTURE, _CLIP = (320, 240), (224, 168)  # width and height of a card's pictures
_SECONDS = 45.0  # after which no further medium is fetched
_TAGS = {"answer": "Other answer", "status": "Other status", "seen": "Seen differently"}


def write_diff(
    names: tuple[str, str], difference: Difference, samples: Samples, page: Path
) -> None:
    """Writes the page. names: of the outputs."""
    statuses = [sample for group in samples.statuses.values() for sample in group]
    rows: list[tuple[Sample, list[str]]] = [(sample, ["answer"]) for sample in samples.answers]
    rows += [(sample, ["status"]) for sample in statuses]
    with closing(SeenReader(ShownSize(4, _PICTURE[1], _PICTURE[0]), seconds=_SECONDS)) as reader:
        # Of the output in which the row is ok: it has the receipt.
        shown = [_shown(sample) for sample, _ in rows]
        first = list(reader.read(shown))
        changed = [number for number, (sample, _) in enumerate(rows) if _sees_differently(sample)]
        second = dict(zip(changed, reader.read([rows[n][0].b for n in changed]), strict=True))
    cards = [
        _card(number, sample, tags, (first[number], second.get(number, ())), difference)
        for number, (sample, tags) in enumerate(rows)
    ]
    filters = [
        (tag, label, count)
        for tag, label in _TAGS.items()
        if (count := sum(tag in card.tags for card in cards))
    ]
    values = {
        "title": "What differs",
        "names": names,
        "rows": (difference.rows_a, difference.rows_b),
        "errors": (difference.errors_a, difference.errors_b),
        "headline": headline(difference),
        "same": same(difference) if difference.differs else "",
        "notes": list(notes(difference)),
        "tables": tables(difference, samples),
        "cards": cards,
        "tags": filters,
    }
    write(page, render(TEMPLATE, **values))


def _shown(sample: Sample) -> dict[str, object]:
    a_is_ok = sample.a.get(c.STATUS) != c.STATUS_ERROR
    return dict(sample.a if a_is_ok else sample.b)


def _sees_differently(sample: Sample) -> bool:
    both = bool(sample.a and sample.b)
    ok = all(row.get(c.STATUS) != c.STATUS_ERROR for row in (sample.a, sample.b))
    return both and ok and _seen_of(sample.a) != _seen_of(sample.b)


def _seen_of(row: object) -> object:
    receipts = row.get(c.RECEIPT) if isinstance(row, dict) else None
    names = ("sha256", "height", "width", "frame_indices")
    return [[receipt.get(name) for name in names] for receipt in receipts or ()]


def _card(
    number: int,
    sample: Sample,
    tags: list[str],
    media: tuple[Sequence[SeenMedium], Sequence[SeenMedium]],
    difference: Difference,
) -> Card:
    seen = [*media[0], *media[1]]
    size = _CLIP if sum(len(medium.frames) for medium in seen) > 1 else _PICTURE
    row = _shown(sample)
    card = row_card(row, difference.layout_a, seen, f"row-{number}", "all", (), *size)
    answers: list[Answer] = []
    for name, first, second in answer_texts(sample, difference):
        runs = page_words(first, second)
        answers.append(Answer(f"A {name}".strip(), runs[0]))
        answers.append(Answer(f"B {name}".strip(), runs[1]))
    status = [
        f"{letter}: {values.get(c.ERROR_CODE) or 'ok'}"
        for letter, values in (("A", sample.a), ("B", sample.b))
    ]
    message = sample.a.get(c.ERROR_MESSAGE) or sample.b.get(c.ERROR_MESSAGE)
    details = list(card.details)
    if message:
        details.insert(0, ("error", str(message)))
    seen_tags = ["seen"] if media[1] else []
    return replace(
        card,
        answers=tuple(answers) or card.answers,
        bars=(),
        truth=(),
        verdict="plain",
        code="",
        message="",
        tags=(*tags, *seen_tags),
        facts=tuple(status) if "status" in tags else card.facts,
        details=tuple(details),
    )
