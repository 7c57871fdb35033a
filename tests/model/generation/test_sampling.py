"""What a request may ask for, and what holds where it is silent."""

import pytest

from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
from mediamill.model.sampling import GenerationRule, Sampling


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0, expected a whole number"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1, expected at least 0"),
        (
            {"min_new_tokens": 5, "max_new_tokens": 4},
            "min_new_tokens is 5 and max_new_tokens is 4; expected min_new_tokens <=",
        ),
        ({"temperature": -0.5}, "temperature is -0.5, expected a number at least 0"),
        ({"temperature": float("nan")}, "temperature is nan, expected a number at least 0"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ({"top_k": -1}, "top_k is -1, expected at least 0"),
        ({"top_k": True}, "top_k is True, expected a whole number"),
        ({"top_p": 0.0}, "top_p is 0.0, expected a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1, expected a number above 0 and at most 1"),
        ({"min_p": 1.5}, "min_p is 1.5, expected a number from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, expected a number above 0"),
        ({"eos_token_ids": (-1,)}, "a token of eos_token_ids is -1, expected at least 0"),
        ({"stop": "END"}, "stop is the string 'END', expected a tuple of strings"),
        ({"stop": ("a", "")}, "stop holds '', expected strings that are not empty"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"seed": 2**63}, r"seed is 9223372036854775808, expected at most 2\^63 - 1"),
        ({"logprobs": -1}, "logprobs is -1, expected at least 0"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(wish, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(**wish)


FILE = GenerationDefaults(
    eos_token_ids=(5, 6),
    repetition_penalty=1.05,
    do_sample=True,
    temperature=0.01,
    top_k=1,
    top_p=0.001,
    min_p=0.2,
    min_new_tokens=3,
    max_new_tokens=77,
    stop=("END",),
)


def test_a_wish_left_open_is_the_files():
    every = Sampling(max_new_tokens=None, temperature=None, seed=4, logprobs=2)
    assert every.rule(FILE, 10) == GenerationRule(
        77, 3, 0.01, 1, 0.001, 0.2, 1.05, (5, 6), ("END",), 4, 2
    )


def test_a_wish_wins_over_the_file():
    wish = Sampling(
        max_new_tokens=9,
        min_new_tokens=0,
        temperature=0.7,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        eos_token_ids=(),
        stop=(),
    )
    assert wish.rule(FILE, 10) == GenerationRule(9, 0, 0.7, 0, 1.0, 0.0, 1.0, (), (), 0, 0)


def test_the_file_decides_whether_tokens_are_drawn_only_when_asked():
    assert not Sampling().rule(FILE, 10).draws
    assert Sampling(temperature=None).rule(FILE, 10).draws
    silent = GenerationDefaults((5,))
    assert not Sampling(temperature=None).rule(silent, 10).draws
    drawn = Sampling(temperature=0.5).rule(silent, 10)
    assert drawn.draws
    assert (drawn.top_k, drawn.top_p) == (50, 1.0), "the reference's own, where the file is silent"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({}, 20),
        ({"max_new_tokens": 7}, 7),
        ({"max_length": 50}, 40),
        ({"max_length": 50, "max_new_tokens": 7}, 7),
        ({"max_length": 10}, 0),
    ],
)
def test_the_length_of_an_answer_that_only_the_file_bounds(file, expected):
    defaults = GenerationDefaults((5,), **file)
    assert Sampling(max_new_tokens=None).rule(defaults, 10).max_new_tokens == expected
    assert Sampling().rule(defaults, 10).max_new_tokens == 128


@pytest.mark.parametrize(("wish", "expected"), [(1e-300, 1e-6), (1e300, 1e30), (0.3, 0.3)])
def test_temperatures_stay_within_float32(wish, expected):
    assert Sampling(temperature=wish).rule(FILE, 1).temperature == expected
