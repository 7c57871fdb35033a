"""Writes the HTML report of a result dataset: each picture or clip beside its text.

The page is one self-contained file (styles, script and thumbnails are inline), and its content
security policy forbids every request. The template escapes all values of rows. Media are fetched
again for their thumbnails.
"""

import base64
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.dataset as ds

from mediamill.jobs.report.counts import (
    TRUTH,
    ResultCounts,
    count,
    group_column,
    open_result,
    shown_rows,
)
from mediamill.jobs.report.report_rows import Card, ErrorRow, make_card, make_error
from mediamill.jobs.report.thumbnails import ThumbnailMaker
from mediamill.schemas import columns as c

# The columns that cards and errors show: others may hold anything.
_SHOWN = (
    *(c.ID, c.URI, c.MEDIA, c.TEXT, TRUTH, c.STATUS, c.ERROR_CODE, c.ERROR_MESSAGE),
    *(c.WIDTH, c.HEIGHT, c.FRAME_TIMES_S, c.VISUAL_TOKENS),
)

PAGE = Path(__file__).parent / "page"


def write_report(output: str, page: Path, limit: int = 1000) -> ResultCounts:
    """Writes the page of the result at `output` (any fsspec URL), and returns its counts.

    limit: the most ok rows, and the most error rows, to show; of more, every n-th is shown. The
    counts on the page are those of all rows.
    Raises FileNotFoundError when there is no result.
    """
    result = open_result(output)
    counts = count(result)
    group = group_column(result)
    with closing(ThumbnailMaker()) as maker:
        ok = [make_card(row, group, maker) for row in _sample(result, group, counts.ok, limit)]
    errors = [
        make_error(row, group)
        for row in _sample(result, group, counts.rows - counts.ok, limit, errors=True)
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_render(output, counts, group, ok, errors), encoding="utf-8")
    return counts


def _sample(
    result: ds.Dataset, group: str | None, total: int, limit: int, errors: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields at most `limit` of the `total` error or ok rows, evenly spread, ordered by id."""
    step = max(1, -(-total // limit))
    shown = {*_SHOWN, *([] if group is None else [group])}
    columns = [name for name in result.schema.names if name in shown]
    rows = (
        (batch, index)
        for batch in result.to_batches(columns=columns)
        for index, status in enumerate(batch[c.STATUS].to_pylist())
        if (status != c.STATUS_OK) == errors
    )
    chosen = itertools.islice(rows, 0, None, step)
    sampled = [shown_rows(batch.slice(index, 1))[0] for batch, index in chosen]
    yield from sorted(sampled, key=lambda row: row[c.ID])


def _render(
    output: str, counts: ResultCounts, group: str | None, cards: list[Card], errors: list[ErrorRow]
) -> str:
    style, script = _asset("report.css"), _asset("report.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdicts = {
        "right": counts.matches,
        "wrong": counts.compared - counts.matches,
        "errors": len(errors),
    }
    visible = {"right", "wrong", "errors"} if counts.compared else {"errors"}
    return environment.get_template("report.html.jinja").render(
        title=output.rstrip("/"),
        style=style,
        script=script,
        style_hash=_content_hash(style),
        script_hash=_content_hash(script),
        counts=counts,
        group=group,
        groups=[item.name for item in counts.groups] if group else [],
        verdicts=[(name, rows) for name, rows in verdicts.items() if name in visible and rows],
        cards=cards,
        errors=errors,
        about=_facts(counts),
        left_out=counts.rows - len(cards) - len(errors),
        percent=_percent,
    )


def _facts(counts: ResultCounts) -> list[tuple[str, str]]:
    facts = [("Rows", f"{counts.rows:,}")]
    facts.append(("Model", _first(counts.models)))
    facts.append(("Fingerprint", _first(tuple(text[:16] for text in counts.fingerprints))))
    facts.append(("Runs", f"{counts.runs:,}"))
    facts.append(("Tokens", f"{counts.visual_tokens:,} seen, {counts.output_tokens:,} written"))
    return facts


def _first(values: Sequence[str]) -> str:
    named = [value for value in values if value]
    if not named:
        return "unknown"
    return named[0] if len(named) == 1 else f"{named[0]} and {len(named) - 1} more"


def _percent(rate: float) -> str:
    """Formats a share with one decimal place; less than all never shows as 100 %."""
    return "100 %" if rate == 1 else f"{min(rate, 0.999):.1%}".replace("%", " %")


def _asset(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _content_hash(text: str) -> str:
    """The source expression that allows exactly this text in the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
