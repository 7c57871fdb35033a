"""Turns result rows into what the report shows of them: cards of captions, and error rows.

Fetches media for their thumbnails. Knows nothing of HTML: what is hostile in a row still is, here.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mediamill.jobs.report import counts as counting
from mediamill.jobs.report.thumbnails import Thumbnail, thumbnails
from mediamill.model.errors import MediaError
from mediamill.model.media.limits import MediaLimits
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
class Part:
    """A run of words of a caption or a truth; differs: the other has not got them there."""

    text: str
    differs: bool


@dataclass(frozen=True)
class Card:
    """An ok row as the page shows it. verdict: right, wrong or plain (nothing to compare with).

    frames: one for a picture, several for a clip, none where the media cannot be shown (`note` says
    why).
    """

    id: str
    group: str
    verdict: str
    said: tuple[Part, ...]
    truth: tuple[Part, ...]
    detail: str
    frames: tuple[Thumbnail, ...]
    note: str


@dataclass(frozen=True)
class ErrorRow:
    """An error row as the page shows it."""

    id: str
    group: str
    uri: str
    code: str
    message: str


def make_card(row: dict[str, Any], group: str | None) -> Card:
    """The card of an ok row; `group` is the column that groups the page."""
    verdict = {True: "right", False: "wrong", None: "plain"}[counting.is_right(row)]
    text, truth = row[c.TEXT] or "", row.get(counting.TRUTH) or ""
    said, expected = _compare(text, truth) if verdict == "wrong" else (_whole(text), _whole(truth))
    frames, note = _frames(_uri(row))
    return Card(
        id=str(row[c.ID]),
        group=_group(row, group),
        verdict=verdict,
        said=said,
        truth=expected,
        detail=_detail(row),
        frames=frames,
        note=note,
    )


def make_error(row: dict[str, Any], group: str | None) -> ErrorRow:
    """The entry of an error row."""
    code, message = row[c.ERROR_CODE] or "unknown", row[c.ERROR_MESSAGE] or ""
    return ErrorRow(str(row[c.ID]), _group(row, group), _uri(row), code, message)


def _group(row: dict[str, Any], group: str | None) -> str:
    return counting.NO_GROUP if group is None else counting.group_name(row[group])


def _uri(row: dict[str, Any]) -> str:
    """The URI of a row's first medium; empty where it has none."""
    if row.get(c.URI):
        return str(row[c.URI])
    media = row.get(c.MEDIA) or []
    return str(media[0][c.MEDIA_URI]) if media else ""


def _detail(row: dict[str, Any]) -> str:
    """What the model saw, in a few words."""
    words = []
    if row[c.WIDTH] and row[c.HEIGHT]:
        words.append(f"seen at {row[c.WIDTH]} × {row[c.HEIGHT]}")
    if row[c.FRAME_TIMES_S]:
        words.append(f"{len(row[c.FRAME_TIMES_S])} frames")
    if row[c.VISUAL_TOKENS]:
        words.append(f"{row[c.VISUAL_TOKENS]:,} tokens")
    return ", ".join(words)


def _frames(uri: str) -> tuple[tuple[Thumbnail, ...], str]:
    """The thumbnails of a medium, or why there are none: a moved file must not stop the page."""
    try:
        return thumbnails(fetch(uri, FETCH), MediaLimits()), ""
    except (MediaError, RowError) as error:
        return (), f"{uri or 'This row'} cannot be shown: {error}"


def _whole(text: str) -> tuple[Part, ...]:
    return (Part(text, False),) if text else ()


def _compare(text: str, truth: str) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Both texts, cut where their words begin or cease to differ."""
    said, expected = text.split(), truth.split()
    ours: list[Part] = []
    theirs: list[Part] = []
    matcher = difflib.SequenceMatcher(None, said, expected, autojunk=False)
    for kind, a, b, i, j in matcher.get_opcodes():
        ours += _run(said[a:b], kind != "equal")
        theirs += _run(expected[i:j], kind != "equal")
    return tuple(ours), tuple(theirs)


def _run(words: Sequence[str], differs: bool) -> list[Part]:
    return [Part(" ".join(words), differs)] if words else []
