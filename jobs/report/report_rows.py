"""Builds what the report shows of result rows: cards of captions with thumbnails, and errors.

Values of rows are not escaped here; the template does that.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mediamill.jobs.report.counts import NO_GROUP, TRUTH, group_name, is_match
from mediamill.jobs.report.thumbnails import Thumbnail, ThumbnailMaker
from mediamill.pipeline.stages.fetch import FetchRules, fetch
from mediamill.schemas import columns as c
from mediamill.schemas.errors import RowError
from mediamill.schemas.job import FetchConfig, Limits

FETCH = FetchRules(
    FetchConfig(tries=2),
    Limits(max_bytes=256 * 2**20, fetch_timeout_s=20.0),
    base=".",
    roots=("/",),
)


@dataclass(frozen=True)
class Words:
    """Consecutive words of a caption or a truth. differs: the other text lacks them here."""

    text: str
    differs: bool


@dataclass(frozen=True)
class Card:
    """An ok row on the page.

    verdict: right, wrong or plain (there is no truth to compare with).
    frames: one for a picture, several for a clip, none when the media cannot be shown.
    note: why there are no frames.
    """

    id: str
    group: str
    verdict: str
    text: tuple[Words, ...]
    truth: tuple[Words, ...]
    detail: str
    frames: tuple[Thumbnail, ...]
    note: str


@dataclass(frozen=True)
class ErrorRow:
    """An error row on the page."""

    id: str
    group: str
    uri: str
    code: str
    message: str


def make_card(row: dict[str, Any], group: str | None, maker: ThumbnailMaker) -> Card:
    """Returns the card of an ok row. group: the column that groups the page."""
    verdict = {True: "right", False: "wrong", None: "plain"}[is_match(row)]
    text, truth = row[c.TEXT] or "", "" if row.get(TRUTH) is None else str(row[TRUTH])
    words, expected = (
        _compare(text, truth) if verdict == "wrong" else (_unmarked(text), _unmarked(truth))
    )
    frames, note = _frames(_uri(row), maker)
    return Card(
        id=str(row[c.ID]),
        group=_group(row, group),
        verdict=verdict,
        text=words,
        truth=expected,
        detail=_detail(row),
        frames=frames,
        note=note,
    )


def make_error(row: dict[str, Any], group: str | None) -> ErrorRow:
    """Returns the entry of an error row."""
    code, message = row[c.ERROR_CODE] or "unknown", row[c.ERROR_MESSAGE] or ""
    return ErrorRow(str(row[c.ID]), _group(row, group), _uri(row), code, message)


def _group(row: dict[str, Any], group: str | None) -> str:
    return NO_GROUP if group is None else group_name(row[group])


def _uri(row: dict[str, Any]) -> str:
    """The URI of a row's first medium, or an empty string."""
    if row.get(c.URI):
        return str(row[c.URI])
    media = row.get(c.MEDIA)
    first = media[0] if isinstance(media, list) and media else None
    return str(first[c.MEDIA_URI] or "") if first else ""


def _detail(row: dict[str, Any]) -> str:
    """A short description of what the model saw."""
    words = []
    if row[c.WIDTH] and row[c.HEIGHT]:
        words.append(f"seen at {row[c.WIDTH]} × {row[c.HEIGHT]}")
    if row[c.FRAME_TIMES_S]:
        words.append(f"{len(row[c.FRAME_TIMES_S])} frames")
    if row[c.VISUAL_TOKENS]:
        words.append(f"{row[c.VISUAL_TOKENS]:,} tokens")
    return ", ".join(words)


def _frames(uri: str, maker: ThumbnailMaker) -> tuple[tuple[Thumbnail, ...], str]:
    """The thumbnails of a medium, or the reason why there are none."""
    try:
        return maker.thumbnails(fetch(uri, FETCH)), ""
    except RowError as error:
        return (), f"{uri or 'This row'} cannot be shown: {error}"


def _unmarked(text: str) -> tuple[Words, ...]:
    return (Words(text, False),) if text else ()


def _compare(text: str, truth: str) -> tuple[tuple[Words, ...], tuple[Words, ...]]:
    """Splits both texts into runs of words that are equal or differ."""
    words, expected = text.split(), truth.split()
    text_runs: list[Words] = []
    truth_runs: list[Words] = []
    matcher = difflib.SequenceMatcher(None, words, expected, autojunk=False)
    for kind, a, b, i, j in matcher.get_opcodes():
        text_runs += _run(words[a:b], kind != "equal")
        truth_runs += _run(expected[i:j], kind != "equal")
    return tuple(text_runs), tuple(truth_runs)


def _run(words: Sequence[str], differs: bool) -> list[Words]:
    return [Words(" ".join(words), differs)] if words else []
