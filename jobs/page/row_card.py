"""Makes cards of result rows, for every kind of job."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mediamill.jobs.page.card import (
    Answer,
    Bar,
    Card,
    CardMedium,
    card_medium,
    compare,
    unmarked,
)
from mediamill.model.urls import redact_text
from mediamill.pipeline.inspect.answers import AnswerLayout
from mediamill.pipeline.inspect.seen import SeenMedium
from mediamill.pipeline.inspect.statistics import TRUTH
from mediamill.schemas import columns as c

_MAX_TEXT = 20_000  # letters of one value on a page
_MAX_BARS = 10
_RECEIPT = ("notes", "bound_by")


def columns_of_cards(layout: AnswerLayout, names: Sequence[str]) -> list[str]:
    """Returns the columns that `row_card` reads, of those that there are."""
    own = [
        name
        for answer in layout.answers
        for name in (
            answer.text,
            answer.mean_logprob,
            answer.finish_reason,
            *answer.fields.values(),
        )
    ]
    others = (c.PROBABILITY, c.SCORES, TRUTH, "start_s", "end_s", "video_id", "seconds")
    mine = (*c.MANIFEST_COLUMNS, *c.RESULT_COLUMNS, *own, *others, *layout.user)
    return [name for name in dict.fromkeys(mine) if name is not None and name in names]


def row_card(
    row: Mapping[str, Any],
    layout: AnswerLayout,
    seen: Sequence[SeenMedium],
    anchor: str,
    group: str = "all",
    tags: Sequence[str] = (),
    max_width: int | None = None,
    max_height: int | None = None,
) -> Card:
    """Returns the card of a row.

    row: its values by column, at least those of `columns_of_cards`. seen: its media.
    anchor: the card's name in the page. group, tags: see `Card`.
    max_width, max_height: of its pictures, in pixels.
    """
    is_error = row.get(c.STATUS) == c.STATUS_ERROR
    verdict = "error" if is_error else _verdict(row)
    answers, truth = _answers(row, layout, verdict)
    media = tuple(card_medium(medium, max_width, max_height) for medium in seen)
    if not seen:
        media = _no_media(row, is_error)
    return Card(
        id=text_of(row.get(c.ID)),
        anchor=anchor,
        group=group,
        verdict=verdict,
        tags=tuple(dict.fromkeys((*tags, verdict))),
        media=media,
        answers=() if is_error and not any(a.words or a.fields for a in answers) else answers,
        truth=truth,
        code=text_of(row.get(c.ERROR_CODE) or "unknown") if is_error else "",
        message=redact_text(text_of(row.get(c.ERROR_MESSAGE) or "")) if is_error else "",
        facts=_facts(row),
        details=_details(row, layout, seen),
        bars=_bars(row.get(c.SCORES)),
    )


def text_of(value: object) -> str:
    """Returns a value as text, long ones cut."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, list | dict):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = "" if value is None else str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text):,} letters)"


def _no_media(row: Mapping[str, Any], is_error: bool) -> tuple[CardMedium, ...]:
    has_media = row.get(c.URI) or row.get(c.MEDIA)
    if not has_media or is_error:
        return ()
    return (CardMedium((), (), "", "This row has no receipt, so its media cannot be shown."),)


def _verdict(row: Mapping[str, Any]) -> str:
    if row.get(TRUTH) is None or row.get(c.TEXT) is None:
        return "plain"
    return "right" if row[c.TEXT] == row[TRUTH] else "wrong"


def _answers(
    row: Mapping[str, Any], layout: AnswerLayout, verdict: str
) -> tuple[tuple[Answer, ...], tuple[Any, ...]]:
    answers, truth = [], unmarked("" if row.get(TRUTH) is None else text_of(row[TRUTH]))
    if layout.job in ("embed", "score"):
        return (), ()
    for answer in layout.answers:
        text = text_of(row.get(answer.text or ""))
        words = unmarked(text)
        if verdict == "wrong" and answer.text == c.TEXT:
            words, truth = compare(text, text_of(row[TRUTH]))
        fields = (
            tuple((name, text_of(row.get(column))) for name, column in answer.fields.items())
            if any(row.get(column) is not None for column in answer.fields.values())
            else ()
        )
        answers.append(Answer(answer.name, words, fields))
    return tuple(answers), truth


def _bars(scores: Any) -> tuple[Bar, ...]:
    if not isinstance(scores, list):
        return ()
    ranked = sorted(scores, key=lambda score: score.get("rank") or 0)
    return tuple(
        Bar(
            text_of(score.get("text")),
            min(1.0, max(0.0, score.get("probability") or 0.0)),
            score.get("rank") == 1,
        )
        for score in ranked[:_MAX_BARS]
    )


def _facts(row: Mapping[str, Any]) -> tuple[str, ...]:
    facts = []
    if row.get("start_s") is not None and row.get("end_s") is not None:
        facts.append(f"{row['start_s']:g} to {row['end_s']:g} s")
    if row.get(c.HEIGHT) and row.get(c.WIDTH):
        facts.append(f"seen at {row[c.HEIGHT]} × {row[c.WIDTH]}")
    if row.get(c.FRAME_TIMES_S):
        facts.append(f"{len(row[c.FRAME_TIMES_S])} frames")
    if row.get(c.VISUAL_TOKENS):
        facts.append(f"{row[c.VISUAL_TOKENS]:,} visual tokens")
    if row.get(c.OUTPUT_TOKENS):
        facts.append(f"{row[c.OUTPUT_TOKENS]:,} written")
    if row.get(c.MEAN_LOGPROB) is not None:
        facts.append(f"log-probability {row[c.MEAN_LOGPROB]:.2f}".replace("-0.00", "0.00"))
    if row.get(c.FINISH_REASON) not in (None, "stop", "done"):
        facts.append(f"ended by {row[c.FINISH_REASON]}")
    return tuple(facts)


def _details(
    row: Mapping[str, Any], layout: AnswerLayout, seen: Sequence[SeenMedium]
) -> tuple[tuple[str, str], ...]:
    """The receipt and the user's columns, as names and values."""
    details: list[tuple[str, str]] = []
    if row.get(c.PROMPT):
        details.append(("prompt", text_of(row[c.PROMPT])))
    for medium, receipt in zip(seen, row.get(c.RECEIPT) or (), strict=False):
        if medium.uri:
            details.append((medium.kind, medium.uri))
        size = f"{receipt.get('source_height')} × {receipt.get('source_width')}"
        details.append(("resized", f"{size} to {receipt['height']} × {receipt['width']}"))
        details += [("note", text_of(note)) for note in receipt.get("notes") or ()]
        if receipt.get("bound_by"):
            details.append(("bound by", ", ".join(receipt["bound_by"])))
    if row.get(c.PROMPT_TOKENS) is not None:
        details.append(("prompt tokens", f"{row[c.PROMPT_TOKENS]:,}"))
    if (row.get(c.ATTEMPT) or 1) > 1:
        details.append(("attempt", str(row[c.ATTEMPT])))
    mine = [name for name in layout.user if name not in (TRUTH, *_RECEIPT)]
    details += [(name, text_of(row[name])[:300]) for name in mine if row.get(name) is not None]
    return tuple(details)
