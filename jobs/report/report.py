"""Writes the page of an output: counts of all its rows, and a sample of them with their pictures.

All rows are read once, by the columns that are counted; the sampled rows are then read whole, and
their media are fetched again.
"""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mediamill.jobs.page.card import Card
from mediamill.jobs.page.page import check_place, render, write
from mediamill.jobs.page.row_card import columns_of_cards, row_card, text_of
from mediamill.jobs.report.facts import alarms_of, facts, run_cells, shapes
from mediamill.jobs.report.neighbours import with_neighbours
from mediamill.jobs.report.timelines import Timeline, timelines_of
from mediamill.model.urls import redact, redact_text
from mediamill.pipeline.annotate.window_columns import STEPS
from mediamill.pipeline.coordinator.run_history import past_runs
from mediamill.pipeline.inspect.output import Output, Position
from mediamill.pipeline.inspect.seen import SeenReader, ShownSize
from mediamill.pipeline.inspect.statistics import Statistics, count, group_name
from mediamill.pipeline.quality.findings import MEANINGS
from mediamill.schemas import columns as c

TEMPLATE = Path(__file__).parent / "templates" / "report.html.jinja"
_GROUPS, _FEW_GROUPS, _RUNS = 100, 8, 50
_PICTURE, _CLIP = (320, 240), (224, 168)  # width and height of a card's pictures
_TAGS = {"wrong": "Wrong", "right": "Right", "unsure": "Least probable", "long": "Longest"}
_LABELS = {"cut_off": "Cut off", "loop": "Loops", "empty": "Empty", "not_finite": "Not finite"}
_RUN_COLUMNS = ("started", "run", "rows", "ok", "errors", "seconds", "end")


@dataclass(frozen=True)
class ReportOptions:
    """cards: rows that are shown, at most, beside those that are extreme.

    price: of an hour of a run, for the cost; None for no cost.
    seconds: after which no further medium is fetched.
    """

    cards: int = 200
    price: float | None = None
    seconds: float = 45.0


@dataclass(frozen=True)
class ErrorExample:
    """An error row."""

    id: str
    uri: str
    message: str


@dataclass(frozen=True)
class ErrorKind:
    """The rows with one error code. command: does them again. share: of all rows."""

    code: str
    rows: int
    share: float
    command: str
    examples: tuple[ErrorExample, ...]


@dataclass(frozen=True)
class Report:
    """What was written. shown: the cards."""

    statistics: Statistics
    shown: int
    page: Path


def write_report(url: str, page: Path, options: ReportOptions | None = None) -> Report:
    """Writes the page of the output at `url`. Raises JobError when there is no result."""
    options = options or ReportOptions()
    output = Output(url)
    check_place(page)  # before the rows are read
    statistics = count(output)
    layout = statistics.layout
    tags = _tags(statistics, options.cards)
    rows = output.rows(tags, columns_of_cards(layout, output.schema.names))
    with closing(
        SeenReader(ShownSize(4, _PICTURE[1], _PICTURE[0]), seconds=options.seconds)
    ) as seen:
        cards = _cards(rows, tags, statistics, seen)
        if layout.job == "embed":
            cards = with_neighbours(output, rows, cards)
        timelines: Sequence[Timeline] = ()
        if output.annotates:
            timelines = timelines_of(output, rows.values(), seen)
    runs = past_runs(url, STEPS) if output.header is not None else []
    groups = list(statistics.groups.values())
    groups.sort(key=lambda group: group.name)
    shown = groups[:_GROUPS]
    group_names = sorted({card.group for card in cards})
    values: dict[str, Any] = {
        "title": redact(url).rstrip("/"),
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "working": output.working,
        "unwritten": max(0, (output.finished or 0) - statistics.rows),
        "statistics": statistics,
        "error_rows": statistics.errors.total(),
        "failed_word": "could not be captioned" if layout.job == "caption" else "failed",
        "lede": _lede(statistics),
        "few": _FEW_GROUPS,
        "about": facts(output, statistics, runs, options.price),
        "alarms": alarms_of(statistics, tags.values()),
        "examined": statistics.examined if statistics.examined < statistics.ok else None,
        "repeats": [item for item in statistics.repeats.most_common(5) if item[1] > 1],
        "histograms": shapes(statistics),
        "sample_note": _sample_note(statistics, len(cards)),
        "tags": _filters(cards),
        "group": ", ".join(output.partition_columns),
        "groups": group_names if output.partition_columns else [],
        "cards": cards,
        "errors": _errors(output, url, statistics, rows),
        "partitions": shown,
        "partitions_left_out": len(groups) - len(shown),
        "runs": [run_cells(run, _RUN_COLUMNS) for run in runs[-_RUNS:]],
        "run_columns": _RUN_COLUMNS,
        "timelines": timelines,
    }
    write(page, render(TEMPLATE, **values))
    return Report(statistics, len(cards), page)


def default_page(url: str) -> Path:
    """Returns where the page of an output goes: beside a local one, else the current folder."""
    from mediamill.pipeline.storage import storage

    place = storage.resolve(url)
    name = f"{Path(place.path).name or 'output'}-report.html"
    return Path(place.path).parent / name if place.is_local else Path(name)


def _tags(statistics: Statistics, cards: int) -> dict[Position, list[str]]:
    """The rows to show, each with what it is an example of."""
    tags: dict[Position, list[str]] = {
        position: ["sample"] for position in statistics.strata.choose(cards)
    }
    for tag, positions in statistics.sample.items():
        for position in positions:
            tags.setdefault(position, []).append(tag)
    return tags


def _cards(
    rows: Mapping[Position, Mapping[str, Any]],
    tags: Mapping[Position, Sequence[str]],
    statistics: Statistics,
    seen: SeenReader,
) -> list[Card]:
    ok = [(position, row) for position, row in rows.items() if row.get(c.STATUS) != "error"]
    if statistics.layout.job == "score":
        ok.sort(key=lambda item: -(item[1].get(c.PROBABILITY) or 0.0))
    else:
        ok.sort(key=lambda item: text_of(item[1].get(c.ID)))
    cards = []
    media = seen.read([row for _, row in ok])
    for number, ((position, row), shown) in enumerate(zip(ok, media, strict=True)):
        size = _CLIP if sum(len(medium.frames) for medium in shown) > 1 else _PICTURE
        group = group_name(_partition_values(row, statistics, position))
        card_tags = [tag for tag in tags[position] if not tag.startswith("error:")]
        layout = statistics.layout
        cards.append(row_card(row, layout, shown, f"row-{number}", group, card_tags, *size))
    return cards


def _partition_values(
    row: Mapping[str, Any], statistics: Statistics, position: Position
) -> Mapping[str, Any]:
    return {name: row.get(name) for name in statistics.partition_columns}


def _errors(
    output: Output, url: str, statistics: Statistics, rows: Mapping[Position, Mapping[str, Any]]
) -> list[ErrorKind]:
    kinds = []
    for code, number in statistics.errors.most_common():
        positions = statistics.sample.get(f"error:{code}", [])
        examples = [_example(rows[position]) for position in positions if position in rows]
        different = {example.message: example for example in examples}
        shown = (*different.values(), *(e for e in examples if different[e.message] is not e))
        condition = f"error_code == '{code}'"
        command = f'mediamill retry {shlex.quote(redact(url))} --where "{condition}"'
        kinds.append(ErrorKind(code, number, number / statistics.rows, command, shown[:3]))
    return kinds


def _example(row: Mapping[str, Any]) -> ErrorExample:
    media = row.get(c.MEDIA) or []
    first = media[0] if isinstance(media, list) and media else {}
    uri = row.get(c.URI) or (first or {}).get(c.MEDIA_URI) or ""
    message = redact_text(text_of(row.get(c.ERROR_MESSAGE) or ""))
    return ErrorExample(text_of(row.get(c.ID)), redact(text_of(uri))[:500], message)


def _lede(statistics: Statistics) -> tuple[str, str]:
    """A number, and what it is of."""
    if statistics.compared:
        rest = f"of {statistics.compared:,} captions match the truth word for word."
        return f"{statistics.matches:,}", rest
    what = {"score": "scores", "embed": "a vector"}.get(statistics.layout.job, "a text")
    return f"{statistics.ok:,}", f"of {statistics.rows:,} rows have {what}."


def _sample_note(statistics: Statistics, cards: int) -> str:
    keys = "Arrow keys go from card to card, Enter opens one."
    if cards >= statistics.ok:
        return f"All {statistics.ok:,} rows without an error. {keys}"
    return (
        f"A sample of {cards:,} of the {statistics.ok:,} rows without an error, spread over "
        f"partitions, kinds and sizes, with the extreme ones. The counts are of all rows. {keys}"
    )


def _filters(cards: Sequence[Card]) -> list[tuple[str, str, int]]:
    labels = {**_TAGS, **{name: _LABELS.get(name, name.capitalize()) for name in MEANINGS}}
    counts = {tag: sum(tag in card.tags for card in cards) for tag in labels}
    shown = [(tag, labels[tag], rows) for tag, rows in counts.items() if rows]
    return [entry for entry in shown if entry[2] < len(cards) or entry[0] != "right"]
