"""Finds the known name that a misspelled one probably means."""

from collections.abc import Iterable
from difflib import SequenceMatcher

_MIN_SIMILARITY = 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name most similar to `name`, or None when none is similar.

    The last parts of dotted names are compared too: `max_new_tokens` finds
    `generation.max_new_tokens`. Names of the section that `name` begins with are preferred.
    """
    best, best_score = None, _MIN_SIMILARITY
    section, dot, _ = name.rpartition(".")
    for candidate in known:
        score = max(
            _similarity(name, candidate),
            _similarity(_last_part(name), _last_part(candidate)) - 0.01,
        )
        if dot and candidate.startswith(f"{section}.") and score > _MIN_SIMILARITY:
            score += 0.1
        if score > best_score:
            best, best_score = candidate, score
    return best


def _similarity(left: str, right: str) -> float:
    return SequenceMatcher(None, left.lower(), right.lower(), autojunk=False).ratio()


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
