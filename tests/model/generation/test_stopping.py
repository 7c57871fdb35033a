"""Stop strings are found where the reference finds them, across tokens and inside letters."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mediamill.model.generation.stopping import StopFinder, before_stop
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.model.tiny import CHECKPOINT
from tests import oracle

TOKENIZER = Tokenizer.load(CHECKPOINT)


def found_at(pieces, strings):
    """(number of pieces taken, string) where generation stops, or None."""
    finder = StopFinder(strings)
    for count, piece in enumerate(pieces, start=1):
        if (stop := finder.add(piece)) is not None:
            return count, stop
    return None


@pytest.mark.parametrize(
    ("pieces", "strings", "expected"),
    [
        ([b"ab", b"cd"], ["bc"], (2, "bc")),
        ([b"a", b"b", b"c", b"d"], ["abcd"], (4, "abcd")),
        ([b"a stop here and more"], ["stop"], (1, "stop")),
        ([b"\xc3", b"\xa9"], ["é"], (2, "é")),
        ([b"x\xf0\x9f", b"\x99", b"\x82!"], ["🙂"], (3, "🙂")),
        ([b"\xc3", b"\xa8"], ["é"], None),
        ([b"short"], ["much longer than all that is said"], None),
        ([b"aab", b"aac"], ["aabaac"], (2, "aabaac")),
        ([b"aaa", b"aaab"], ["aaab"], (2, "aaab")),
        ([b"xbca"], ["ca", "bc", "a"], (1, "bc")),
        ([b"abc"], ["ab", "abc"], (1, "abc")),
        ([b"ab", b"c"], ["abc", "ab"], (1, "ab")),
        ([b"", b"a", b"", b"b"], ["ab"], (4, "ab")),
        ([b"a"] * 500, ["b"], None),
    ],
)
def test_the_first_string_that_an_answer_holds(pieces, strings, expected):
    assert found_at(pieces, strings) == expected


words = st.text(st.sampled_from("ab é🙂"), max_size=12)


@settings(max_examples=300)
@given(words, st.lists(words.filter(bool), min_size=1, max_size=3), st.data())
def test_pieces_of_any_length_are_as_the_whole(text, strings, data):
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = found_at(pieces, strings)
    held = [
        n
        for n in range(len(pieces) + 1)
        if any(s.encode() in b"".join(pieces[:n]) for s in strings)
    ]
    assert (found and found[0]) == (held[0] if held else None)
    if found:
        before = before_stop(text, strings)
        assert text.startswith(before)
        assert not any(string in before for string in strings)
    else:
        assert before_stop(text, strings) == text


def test_the_text_before_the_first_stop_string():
    assert before_stop("one END two STOP", ("STOP", "END")) == "one "
    assert before_stop("one", ()) == "one"


ids = st.lists(st.integers(0, 519), min_size=1, max_size=15)


@settings(max_examples=60, deadline=None)
@given(ids, st.lists(st.tuples(st.integers(0, 14), st.integers(1, 9)), min_size=1, max_size=2))
@example([508], [(0, 9)])
def test_the_reference_stops_at_the_same_token(tokens, parts):
    """Strings are cut out of the text itself, so that they are found and begin inside tokens."""
    text = oracle.load_tokenizer(CHECKPOINT).decode(tokens)
    strings = [text[a : a + n] for a, n in parts if text[a : a + n] and "�" not in text[a : a + n]]
    if not strings:
        return
    criterion = oracle.StopStringCriteria(oracle.load_tokenizer(CHECKPOINT), strings)
    stops = [
        count
        for count in range(1, len(tokens) + 1)
        if criterion(torch.tensor([tokens[:count]]), None).item()
    ]
    found = found_at([TOKENIZER.token_bytes(token) for token in tokens], strings)
    assert (found and found[0]) == (stops[0] if stops else None)
