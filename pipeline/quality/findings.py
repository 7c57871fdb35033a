"""Finds what may be wrong with an answer, from its text alone: simple rules without a model.

`python -m benchmarks.quality` measures their precision and recall on drawn texts; docs/quality.md
has the figures.
"""

import math
import re
from typing import Literal, get_args

from mediamill.model.generation.loops import loop_start
from mediamill.pipeline.quality.languages import language_of

Kind = Literal[
    "cut_off", "loop", "refusal", "thinking", "preamble", "empty", "language", "not_finite"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANINGS = {  # for people
    "cut_off": "cut off at generation.max_new_tokens",
    "loop": "looks like a loop: the same words again and again",
    "refusal": "says that it cannot answer",
    "thinking": "thinks aloud",
    "preamble": "announces the answer",
    "empty": "no letter and no digit",
    "language": "in another language than asked",
    "not_finite": "numbers of the model that are not finite",
}

_LOOP_WORDS = 32  # the least length of a loop of words, or of letters where words have no spaces
_HEAD = 240  # letters in which a refusal or a preamble begins
# Words, each letter of scripts that write no spaces, and rows of one sign, such as dotted lines.
_ITEM = re.compile(
    r"\d+|[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|[^\W\d_]+|(?P<sign>[^\w\s])(?P=sign)*"
)
_REFUSAL = re.compile(
    r"\b(i'?m|i am) (sorry|afraid|unable|not able)\b"
    r"|\bi (can ?not|can'?t|could ?n'?t|won'?t|do not|don'?t) (assist|help|provide|describe|"
    r"identify|recogni[sz]e|comply|see|view|access|generate|answer|fulfil)"
    r"|\bas an? (ai|artificial|language model|text-based)"
    r"|\b(against|violates?) (my|the|our) (guidelines|policy|policies|rules)"
    r"|\bunable to (assist|help|provide|describe|identify|process|view|see)"
    r"|\b(no|without an?) image (was|is|has been)? ?(provided|attached|given|uploaded)"
    r"|抱歉|对不起|无法(提供|协助|描述|识别|回答)|作为(一个|一名)?(人工智能|AI|语言模型)"
    r"|申し訳|お手伝いできません|죄송"
    r"|\b(lo siento|je suis désolé|désolé|es tut mir leid|tut mir leid|mi dispiace|desculpe)\b",
    re.IGNORECASE,
)
_THINKING = re.compile(
    r"</?think(ing)?>|</?thought>|<\|(begin|start)_of_thought\|>"
    r"|\A\W*(okay|ok|alright|so|hmm|wait|first)?,?\s*(let me (think|look|see|analy[sz]e|start)"
    r"|let'?s (think|look|see|analy[sz]e|break|start)|i need to (think|describe|look|figure|analy))"
    r"|\A\W*(okay|ok|alright|hmm),? (so|the user|i)\b|\bthe user (wants|is asking|asked|asks)\b",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"\A\W*((sure|certainly|of course|absolutely|okay|ok|great)\b[!,.]*\s*)?"
    r"(here('s| is) what i (see|found)|here(('s| is| are)( an?| the| my| your| some)?"
    r"( \w+){0,4}? (captions?|descriptions?|summary|answers?|transcription|response|analysis)\b))"
    r"|\A\W*(sure|certainly|of course|absolutely)\s*[!,.]",
    re.IGNORECASE,
)


def findings(
    text: str | None,
    finish_reason: str | None = None,
    mean_logprob: float | None = None,
    language: str | None = None,
) -> tuple[Kind, ...]:
    """Returns what may be wrong with an answer, in the order of KINDS; nothing for no text.

    cut_off: it ended at generation.max_new_tokens. loop: its end repeats the same words, numbers
    aside. refusal: it says that it cannot or will not answer. thinking: it thinks aloud. preamble:
    it announces the answer ("Here is a caption:"). empty: it has no letter and no digit. language:
    it is in another language than `language`; None = any. not_finite: its
    log-probability is no number, or it is the first token of the vocabulary again and again, which
    is what a model whose numbers overflow writes.
    """
    if text is None:
        return ()
    found = {
        "cut_off": finish_reason == "length",
        "loop": finish_reason == "loop" or ends_in_loop(text),
        "refusal": bool(_REFUSAL.search(text[:_HEAD].replace("\u2019", "'"))),
        "thinking": bool(_THINKING.search(text[:_HEAD].replace("\u2019", "'"))),
        "preamble": bool(_PREAMBLE.search(text[:_HEAD].replace("\u2019", "'"))),
        "empty": not any(map(str.isalnum, text)),
        "language": language is not None and language_of(text) not in (None, language),
        "not_finite": _is_not_finite(text, mean_logprob),
    }
    return tuple(kind for kind in KINDS if found[kind])


def ends_in_loop(text: str) -> bool:
    """Returns whether the end of a text repeats itself; its last word may be cut off."""
    words = (match[0] for match in _ITEM.finditer(text.casefold()))
    items = ["0" if word.isdigit() else word for word in words]  # since loops count
    return any(loop_start(ending, _LOOP_WORDS) is not None for ending in (items, items[:-1]))


def _is_not_finite(text: str, mean_logprob: float | None) -> bool:
    if mean_logprob is not None and not math.isfinite(mean_logprob):
        return True
    shown = text.strip()
    return len(shown) >= 8 and set(shown) == {"!"}
