"""Grammars over the published vocabulary: its tokens can write every answer, and its bytes fit."""

import json
import random

import jsonschema
import numpy as np
import pytest

from mediamill.model.generation.grammar import BitmaskFiller, Grammars
from mediamill.model.text.tokenizer import Tokenizer
from tests.model.json_schemas import SCHEMAS, closed, text
from tests.parity.vocabulary import write_tokenizer

VOCABULARY = 151_936
ALPHABET = 'abc XYZ 0189.,"\\/\n\täöß漢字かな한국어ไทย🙂👩‍👧🇩🇪\u0301\x00'
FREE = closed(
    text={"type": "string"},
    words={"type": "array", "items": {"type": "string"}},
    number={"type": "number"},
    inner=closed(sure={"type": "boolean"}, count={"type": "integer"}),
)


@pytest.fixture(scope="module")
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_tokenizer(request.config.getoption("qwen_wheel"), folder / "tokenizer.json")
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, VOCABULARY)


def token_mask(matcher):
    masks = BitmaskFiller(VOCABULARY, 1)
    bits = np.zeros((1, masks.words), np.int32)
    masks.fill(bits, [matcher], [()])
    return np.unpackbits(bits.view(np.uint8), bitorder="little")[:VOCABULARY]


def test_its_own_tokens_can_write_every_answer(tokenizer, grammars, parity_seed):
    rng = random.Random(parity_seed)

    def words():
        return "".join(rng.choice(ALPHABET) for _ in range(rng.randint(0, 30)))

    for _ in range(60):
        answer = {
            "text": words(),
            "words": [words() for _ in range(rng.randint(0, 3))],
            "number": rng.choice([0, -1.5, 1e-9, 12345678]),
            "inner": {"sure": rng.random() < 0.5, "count": rng.randint(-(10**9), 10**9)},
        }
        answer_text = json.dumps(answer, ensure_ascii=False)
        matcher = grammars.matcher(text(FREE))
        for token in tokenizer.encode_exactly(answer_text):
            assert token_mask(matcher)[token], (answer_text, tokenizer.token_bytes(token))
            matcher.advance(token)
        assert matcher.complete


@pytest.mark.parametrize("name", SCHEMAS)
def test_walks_at_random_end_in_valid_text(tokenizer, grammars, parity_seed, name):
    rng = random.Random(f"{parity_seed} {name}")
    control = list(tokenizer.special.values())
    for _ in range(8):
        matcher, tokens = grammars.matcher(text(SCHEMAS[name])), []
        while not matcher.complete and len(tokens) < 150:
            bits = token_mask(matcher)
            assert not bits[control].any()
            assert not bits[151_657:].any()  # beyond the tokenizer
            tokens.append(int(rng.choice(np.flatnonzero(bits).tolist())))
            matcher.advance(tokens[-1])
            assert matcher.problem is None
        if matcher.complete:
            whole = b"".join(tokenizer.token_bytes(token) for token in tokens).decode()
            assert whole == tokenizer.decode(tokens)
            jsonschema.validate(json.loads(whole), SCHEMAS[name])
