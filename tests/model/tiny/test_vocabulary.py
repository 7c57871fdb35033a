"""The tokenizer's script: it still fits the world, and so does the tokenizer that ships."""

import pytest
from tokenizers import Tokenizer

from mediamill.model.tiny import CHECKPOINT, scenes
from mediamill.model.tiny.drawing import COLOURS, SHAPES
from mediamill.model.tiny.vocabulary import SPECIALS, VOCABULARY, train_tokenizer


@pytest.fixture(params=["shipped", "trained anew"])
def tokenizer(request):
    if request.param == "shipped":
        return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    return train_tokenizer()


def test_the_special_tokens_come_last_and_in_order(tokenizer):
    assert tokenizer.get_vocab_size() == VOCABULARY
    numbers = [tokenizer.token_to_id(name) for name in SPECIALS]
    assert numbers == list(range(VOCABULARY - len(SPECIALS), VOCABULARY))


def test_every_word_of_a_caption_is_one_token(tokenizer):
    for word in (*COLOURS, *SHAPES, *scenes.SIZES, *scenes.WORDS):
        assert len(tokenizer.encode(f" {word}").ids) == 1, word


def test_every_text_comes_back(tokenizer):
    for text in ("a large red circle", "Déjà vu, 12 %\n\t日本", "🙂", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
