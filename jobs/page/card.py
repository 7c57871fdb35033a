"""What a page shows of one row: a card with pictures, texts, facts and details.

Values are not escaped here; the templates do that.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from mediamill.pipeline.inspect.encode import Picture, encode
from mediamill.pipeline.inspect.seen import SeenMedium


@dataclass(frozen=True)
class Words:
    """Consecutive words of a text. differs: the other text lacks them here."""

    text: str
    differs: bool = False


@dataclass(frozen=True)
class CardMedium:
    """One medium. pictures: none if it cannot be shown. note: why, or what differs.

    label: what it is, for readers that see no pictures. times: of a video's frames, as texts.
    """

    pictures: tuple[Picture, ...]
    times: tuple[str, ...]
    label: str
    note: str


@dataclass(frozen=True)
class Answer:
    """One text of a row. name: of its prompt, empty if there is one prompt only.

    fields: names and values of a JSON answer.
    """

    name: str
    words: tuple[Words, ...]
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Bar:
    """A text that was scored. share: its probability among the texts, 0..1."""

    text: str
    share: float
    best: bool


@dataclass(frozen=True)
class Neighbour:
    """A row with a similar vector. similarity: the cosine, -1..1."""

    id: str
    similarity: float
    picture: Picture | None


@dataclass(frozen=True)
class Card:
    """A row on a page.

    anchor: its name in the page. group: of the rows, such as a partition.
    verdict: right, wrong, plain (nothing to compare with) or error.
    tags: what the row is an example of; the page filters by them.
    code, message: of an error row. facts: short, in one line. details: names and values.
    """

    id: str
    anchor: str
    group: str
    verdict: str
    tags: tuple[str, ...] = ()
    media: tuple[CardMedium, ...] = ()
    answers: tuple[Answer, ...] = ()
    truth: tuple[Words, ...] = ()
    code: str = ""
    message: str = ""
    facts: tuple[str, ...] = ()
    details: tuple[tuple[str, str], ...] = ()
    bars: tuple[Bar, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()

    @property
    def pictures(self) -> int:
        """How many pictures it shows."""
        return sum(len(medium.pictures) for medium in self.media)


def card_medium(
    seen: SeenMedium, max_width: int | None = None, max_height: int | None = None
) -> CardMedium:
    """Returns what a card shows of a medium, its pictures within max_width x max_height pixels."""
    pictures = tuple(encode(frame, max_width, max_height) for frame in seen.frames)
    times = tuple("" if p.time_s is None else clock(p.time_s) for p in pictures)
    size = f"{seen.height} × {seen.width} pixels"
    if seen.kind == "image":
        label = f"The picture as the model saw it, {size}"
    else:
        label = f"{len(pictures)} of the {seen.frame_count} frames that the model saw, {size}"
    return CardMedium(pictures, times, label, seen.note)


def clock(seconds: float) -> str:
    """Formats a time in a video: 0:03.5, 1:02:03.0."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02}" if hours else str(minutes)
    return f"{start}:{rest // 10:02}.{rest % 10}"


def unmarked(text: str) -> tuple[Words, ...]:
    """Returns a text without marks; nothing for an empty one."""
    return (Words(text),) if text else ()


def compare(text: str, truth: str) -> tuple[tuple[Words, ...], tuple[Words, ...]]:
    """Splits two texts into runs of words that are equal or differ."""
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
