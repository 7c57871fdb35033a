"""Marks the words that differ between two texts, for terminals, Markdown and pages."""

import difflib
from collections.abc import Iterator

from mediamill.jobs.page.card import Words

_MOST = 400  # words of a text that are compared
_FIRST_UNSPACED = "\u2e80"  # Chinese, Japanese and Korean letters begin here
_RED, _GREEN, _END = "\x1b[31;9m", "\x1b[32m", "\x1b[0m"

Run = tuple[str, str, str]  # kind (equal, or not), words of A, words of B


def word_runs(a: str, b: str) -> list[Run]:
    """Splits two texts into runs of words that are equal or differ."""
    first, second = _words(a), _words(b)
    join = "" if _is_unspaced(a) and _is_unspaced(b) else " "
    cut = [words[:_MOST] + (["…"] if len(words) > _MOST else []) for words in (first, second)]
    matcher = difflib.SequenceMatcher(None, cut[0], cut[1], autojunk=False)
    return [
        (kind, join.join(cut[0][i:j]), join.join(cut[1][k:m]))
        for kind, i, j, k, m in matcher.get_opcodes()
    ]


def terminal_diff(a: str, b: str, is_coloured: bool, width: int) -> Iterator[str]:
    """Yields lines with what A has too much, and what it lacks: in colours, or as [-A-] {+B+}.

    width: letters of a line.
    """
    line, used = "", 0
    for word, colour in _marked(word_runs(plain(a), plain(b)), is_coloured):
        for start in range(0, len(word), width):
            part = word[start : start + width]
            if used and used + 1 + len(part) > width:
                yield line
                line, used = "", 0
            line += " " if used else ""
            line += f"{colour}{part}{_END}" if colour else part
            used += len(part) + (used > 0)
    if used:
        yield line


def _marked(runs: list[Run], is_coloured: bool) -> Iterator[tuple[str, str]]:
    """Words with their colours; without colours the words have brackets."""
    for kind, first, second in runs:
        if kind == "equal":
            yield from ((word, "") for word in first.split(" "))
            continue
        for text, colour, marks in ((first, _RED, "--"), (second, _GREEN, "++")):
            if text and is_coloured:
                yield from ((word, colour) for word in text.split(" "))
            elif text:
                bracketed = f"[-{text}-]" if marks == "--" else f"{{+{text}+}}"
                yield from ((word, "") for word in bracketed.split(" "))


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
    """Whether most of a text is of a script that writes no spaces between words."""
    unspaced = sum(letter >= _FIRST_UNSPACED for letter in text)
    return 2 * unspaced > len(text)
