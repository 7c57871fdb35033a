"""Writes the page of a preview."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mediamill.jobs.page.page import render, write
from mediamill.jobs.page.row_card import row_card
from mediamill.jobs.preview.text import million_text, prompts_of, seconds_text, summary_lines
from mediamill.model.urls import redact
from mediamill.schemas import columns as c

if TYPE_CHECKING:
    from mediamill.pipeline.preview.preview import Preview

TEMPLATE = Path(__file__).parent / "templates" / "preview.html.jinja"
_PICTURE, _CLIP = (640, 480), (224, 168)  # width and height of a card's pictures


def write_preview(preview: "Preview", source: str, page: Path, price: float | None) -> None:
    """Writes the page. source: of the rows, as the user names it."""
    cards = []
    for number, row in enumerate(preview.rows):
        frames = sum(len(medium.frames) for medium in row.media)
        size = _CLIP if frames > 1 else _PICTURE
        values = {name: value for name, value in row.values.items() if name != c.MODEL}
        card = row_card(values, preview.layout, row.media, f"row-{number}", row.stratum, (), *size)
        given = [(f"prompt {name}".strip(), text) for name, text in prompts_of(preview, row)]
        took = [("seconds", seconds_text(row)), ("media", f"{row.source_bytes:,} bytes")]
        if not row.media and row.values.get(c.URI):
            took.append(("uri", redact(str(row.values[c.URI]))))
        details = [entry for entry in card.details if entry[0] != "prompt"]
        cards.append(replace(card, details=(*given, *took, *details)))
    lines = list(summary_lines(preview, None))
    values = {
        "title": f"Preview of {redact(source).rstrip('/')}",
        "cards": cards,
        "summary": lines[:2],
        "notes": preview.notes,
        "million": million_text(preview, price) if preview.rows else "",
    }
    write(page, render(TEMPLATE, **values))
