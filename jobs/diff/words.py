"""Marks the words that differ between two texts, for terminals, Markdown and pages."""

import difflib
from collections.abc import Iterator

from mediamill.jobs.page.card import Words

_MOST = 400  # words of a text that are compared
_RED, _GREEN, _END = "\x1b[31;9m", "\x1b[32m", "\x1b[0m"

Run = tuple[str, str, str]  # kind (equal, or not), words of A, words of B


def word_runs(a: str, b: str) -> list[Run]:
    """Splits two texts into runs of words that are equal or differ."""
    first, second = _words(a), _words(b)
    join = "" if _is_unspaced(a) and _is_unspaced(b) else " "
    cut = [words[:_MOST] + (["…"] if len(words) > _MOST else []) for words in (first, second)]
    matcher = difflib.SequenceMatcher(None, *cut, autojunk=False)
    return [
        (kind, join.join(cut[0][i:j]), join.join(cut[1][k:m]))
        for kind, i, j, k, m in matcher.get_opcodes()
    ]


def terminal_diff(a: str, b: str, is_coloured: bool) -> str:
    """Returns one line with what A lacks and has too much: in colours, or as [-A-] {+B+}."""
    return " ".join(_terminal(word_runs(plain(a), plain(b)), is_coloured))


def _terminal(runs: list[Run], is_coloured: bool) -> Iterator[str]:
    for kind, first, second in runs:
        if kind == "equal":
            yield first
            continue
        if first:
            yield f"{_RED}{first}{_END}" if is_coloured else f"[-{first}-]"
        if second:
            yield f"{_GREEN}{second}{_END}" if is_coloured else f"{{+{second}+}}"


def page_words(a: str, b: str) -> tuple[tuple[Words, ...], tuple[Words, ...]]:
    """Returns both texts with the words that the other one lacks marked."""
    runs = word_runs(a, b)
    return (
        tuple(Words(first, kind != "equal") for kind, first, _ in runs if first),
        tuple(Words(second, kind != "equal") for kind, _, second in runs if second),
    )


def plain(text: str) -> str:
    """Returns a text without what a terminal would obey: such letters become escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split()).encode("utf-8", "replace").decode()
    )


def _words(text: str) -> list[str]:
    return list(text.strip()) if _is_unspaced(text) else text.split()


def _is_unspaced(text: str) -> bool:
    """Whether a text is of a script without spaces, more or less."""
    return len(text) > 12 and len(text.split()) * 12 < len(text)
