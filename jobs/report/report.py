"""Turns a result dataset into one HTML page: each picture or clip beside its text.

The page is a single file that needs nothing else: styles, script and thumbnails lie in it, and its
content policy forbids every request. All that comes from rows is escaped by the template. Rows are
read from the result alone; media are fetched again for their thumbnails.
"""

import base64
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.dataset as ds

from mediamill.jobs.report import counts as counting
from mediamill.jobs.report.counts import Counts
from mediamill.jobs.report.report_rows import Card, ErrorRow, make_card, make_error
from mediamill.schemas import columns as c

PAGE = Path(__file__).parent / "page"


def write_report(output: str, page: Path, limit: int = 1000) -> Counts:
    """Write the page of the result at `output` (any fsspec URL), and return what was counted.

    limit: how many ok rows and how many error rows are shown at most; of more, an even choice. The
    counts on the page are of all rows.

    Raises FileNotFoundError where there is no result.
    """
    result = counting.open_result(output)
    tally = counting.count(result)
    group = counting.group_column(result)
    ok = [make_card(row, group) for row in _chosen(result, tally.ok, limit, errors=False)]
    errors = [
        make_error(row, group) for row in _chosen(result, tally.rows - tally.ok, limit, errors=True)
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_render(output, tally, group, ok, errors), encoding="utf-8")
    return tally


def _chosen(
    result: ds.Dataset, total: int, limit: int, *, errors: bool
) -> Iterator[dict[str, Any]]:
    """At most `limit` of the `total` error or ok rows, evenly spread, in order of their ids."""
    failed = ds.field(c.STATUS) != c.STATUS_OK
    step = max(1, -(-total // limit))
    batches = result.to_batches(filter=failed if errors else ~failed)
    rows = itertools.chain.from_iterable(_rows(batch) for batch in batches)
    yield from sorted(itertools.islice(rows, 0, None, step), key=lambda row: row[c.ID])


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    for index in range(batch.num_rows):
        yield {name: batch.column(name)[index].as_py() for name in batch.schema.names}


def _render(
    output: str, tally: Counts, group: str | None, cards: list[Card], errors: list[ErrorRow]
) -> str:
    style, script = _asset("report.css"), _asset("report.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdicts = {"right": tally.right, "wrong": tally.judged - tally.right, "errors": len(errors)}
    shown = {"right", "wrong", "errors"} if tally.judged else {"errors"}
    return environment.get_template("report.html.jinja").render(
        title=output.rstrip("/"),
        style=style,
        script=script,
        style_hash=_content_hash(style),
        script_hash=_content_hash(script),
        tally=tally,
        group=group,
        groups=[one.name for one in tally.groups] if group else [],
        verdicts=[(name, count) for name, count in verdicts.items() if name in shown and count],
        cards=cards,
        errors=errors,
        about=_about(tally),
        left_out=tally.rows - len(cards) - len(errors),
        percent=_percent,
    )


def _about(tally: Counts) -> list[tuple[str, str]]:
    facts = [("Rows", f"{tally.rows:,}")]
    facts.append(("Model", _first(tally.models)))
    facts.append(("Fingerprint", _first(tuple(one[:16] for one in tally.fingerprints))))
    facts.append(("Runs", f"{tally.runs:,}"))
    facts.append(("Tokens", f"{tally.visual_tokens:,} seen, {tally.output_tokens:,} written"))
    return facts


def _first(values: Sequence[str]) -> str:
    named = [value for value in values if value]
    if not named:
        return "not told"
    return named[0] if len(named) == 1 else f"{named[0]} and {len(named) - 1} more"


def _percent(rate: float) -> str:
    """One decimal place, and never 100 % for less than all."""
    return "100 %" if rate == 1 else f"{min(rate, 0.999):.1%}".replace("%", " %")


def _asset(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _content_hash(text: str) -> str:
    """The source expression by which the page's policy allows exactly this text to run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
