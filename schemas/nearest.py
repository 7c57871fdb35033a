"""Turns a name that is not known into the known one that was probably meant."""

from collections.abc import Iterable
from difflib import SequenceMatcher

_CUTOFF = 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is like it.

    Dotted names are compared whole and by their last part, so that `max_new_tokens` finds
    `generation.max_new_tokens`.
    """
    best, best_score = None, _CUTOFF
    for candidate in known:
        score = max(_likeness(name, candidate), _likeness(_last(name), _last(candidate)) - 0.01)
        if score > best_score:
            best, best_score = candidate, score
    return best


def _likeness(left: str, right: str) -> float:
    return SequenceMatcher(None, left.lower(), right.lower(), autojunk=False).ratio()


def _last(name: str) -> str:
    return name.rpartition(".")[2]
