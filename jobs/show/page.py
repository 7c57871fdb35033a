"""Writes a page of a few rows, with everything that is known of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mediamill.jobs.page.page import render, write
from mediamill.jobs.page.row_card import row_card
from mediamill.pipeline.inspect.answers import AnswerLayout
from mediamill.pipeline.inspect.prompt import prompts_of
from mediamill.pipeline.inspect.seen import SeenMedium
from mediamill.schemas import columns as c

TEMPLATE = Path(__file__).parent / "templates" / "rows.html.jinja"


def write_rows(
    url: str,
    rows: Sequence[Mapping[str, Any]],
    media: Sequence[Sequence[SeenMedium]],
    layout: AnswerLayout,
    parts: Mapping[str, Any],
    page: Path,
) -> None:
    """Writes the page of rows and their media. parts: of the output's fingerprint."""
    cards = []
    for number, (row, seen) in enumerate(zip(rows, media, strict=True)):
        prompts = prompts_of(row, layout, parts, str(row.get(c.MODEL) or ""))
        given = tuple((f"prompt {name}".strip(), text) for name, text in prompts)
        run = ("run", str(row.get(c.RUN_ID)))
        card = row_card(row, layout, seen, f"row-{number}")
        cards.append(replace(card, details=(*given, *card.details, run)))
    write(page, render(TEMPLATE, title=url.rstrip("/"), cards=cards))
