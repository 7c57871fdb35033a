"""Finds what may be wrong with an answer, from its text alone: simple rules without a model."""

import math
from collections.abc import Callable

# text, finish_reason, mean_logprob -> names of what may be wrong
Detector = Callable[[str | None, str | None, float | None], tuple[str, ...]]

# What the names mean, for people.
MEANINGS = {
    "cut_off": "cut off at generation.max_new_tokens",
    "loop": "looks like a loop: the same words again and again",
    "empty": "no letter and no digit",
    "refusal": "says that it cannot answer",
    "thinking": "thinks aloud",
    "preamble": "announces the answer",
    "language": "in another language than asked",
    "not_finite": "log-probability is not a finite number",
}
_GRAM, _LEAST_WORDS, _LOOP_SHARE = 4, 24, 0.5


def findings(
    text: str | None, finish_reason: str | None = None, mean_logprob: float | None = None
) -> tuple[str, ...]:
    """Returns the names of what may be wrong with an answer; nothing for no text."""
    if text is None:
        return ()
    names = []
    if finish_reason == "length":
        names.append("cut_off")
    if finish_reason == "loop" or repeated_share(text) > _LOOP_SHARE:
        names.append("loop")
    if not any(map(str.isalnum, text)):
        names.append("empty")
    if mean_logprob is not None and not math.isfinite(mean_logprob):
        names.append("not_finite")
    return tuple(names)


def repeated_share(text: str) -> float:
    """Returns the share of a text's groups of four words that came before in it, 0..1.

    Of a text without spaces, letters count as words. 0 for texts of less than 24 words.
    """
    words = text.split()
    if len(words) * 12 < len(text):
        words = list(text)
    grams = len(words) - _GRAM + 1
    if len(words) < _LEAST_WORDS:
        return 0.0
    different = len(set(zip(words, words[1:], words[2:], words[3:])))  # noqa: B905
    return 1 - different / grams
