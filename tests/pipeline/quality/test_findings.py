"""The detectors judge drawn texts nearly always right, and few texts bind their memory."""

import random

import pytest

from benchmarks.quality import cases
from mediamill.pipeline.quality.findings import KINDS, ends_in_loop, findings
from mediamill.pipeline.quality.languages import language_of
from mediamill.pipeline.quality.repeated_texts import CAPACITY, RepeatedTexts, text_key
from mediamill.schemas.job_alarms import LANGUAGES


def test_the_detectors_find_what_was_drawn() -> None:
    drawn = cases(random.Random(7), 100)
    judged = [(kinds, set(findings(text, language="en"))) for text, kinds in drawn]
    for kind in ("loop", "refusal", "thinking", "preamble", "empty", "language", "not_finite"):
        true = [judgement for kinds, judgement in judged if kind in kinds]
        assert sum(kind in judgement for judgement in true) >= 0.75 * len(true), kind
    assert not any(judgement for kinds, judgement in judged if not kinds)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (None, ()),
        ("", ("empty",)),
        (" \n…", ("empty",)),
        ("7", ()),
        ("!!!!!!!!!!!!", ("empty", "not_finite")),
        ("I’m sorry, but I can’t assist with that.", ("refusal",)),
        ("A dog. " * 30, ("loop",)),
        ("1. A dog. " + "".join(f"{n}. A cat. " for n in range(2, 40)), ("loop",)),
        ("No, no, no, no!", ()),
        ("| a | b |\n" + "| --- " * 12 + "|", ()),
        ("\ud800" * 3, ("empty",)),
        ("a" * 100_000, ()),
    ],
)
def test_findings_of_one_text(text: str | None, kinds: tuple[str, ...]) -> None:
    assert findings(text) == kinds


def test_findings_of_facts() -> None:
    assert findings("A dog", "length") == ("cut_off",)
    assert findings("A dog", "loop") == ("loop",)
    assert findings("A dog", "stop", float("nan")) == ("not_finite",)
    assert findings("Der Hund ist auf dem Sofa und schläft.", language="en") == ("language",)
    assert findings("Der Hund ist auf dem Sofa und schläft.", language="de") == ()
    assert set(KINDS) >= {"cut_off", "loop", "refusal"}


def test_a_loop_whose_last_word_is_cut_off_is_one() -> None:
    assert ends_in_loop("the small dog and " * 12 + "the sm")
    assert not ends_in_loop("the small dog and " * 2)


def test_languages() -> None:
    assert language_of("A small dog is on the sofa, with a cat.") == "en"
    assert language_of("写真に犬が写っています。") == "ja"
    assert language_of("一只小狗在沙发上") == "zh"
    assert language_of("Coca-Cola") is None
    assert language_of("") is None
    assert {"en", "ja", "de"} <= set(LANGUAGES)


def test_repeated_texts_are_counted_in_bounded_memory() -> None:
    rng = random.Random(0)
    texts = [f"A text about {rng.choice('abcdefgh')}{rng.random()} {n}." for n in range(8_000)]
    words = ["".join(rng.choice("abcdefghij") for _ in range(9)) for _ in range(8_000)]
    texts = [f"{text} {word}" for text, word in zip(texts, words, strict=True)]
    stream = texts + ["A white  wall, no. 7!"] * 500 + ["a white wall NO 12"] * 500
    rng.shuffle(stream)
    halves = RepeatedTexts(), RepeatedTexts()
    halves[0].add(stream[:4_000])
    halves[1].add(stream[4_000:])
    halves[0].merge(*halves[1].counters())
    assert len(halves[0].counters()[0]) <= CAPACITY
    example, count = halves[0].most_common() or ("", 0)
    assert text_key(example) == text_key("A white wall, no.")
    assert 1_000 - len(stream) // CAPACITY <= count <= 1_000
    assert RepeatedTexts().most_common() is None
