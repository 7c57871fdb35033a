"""The published vocabulary: ids, texts and answers equal the reference's with 151,936 embeddings.

Runs where the wheel that holds the vocabulary is named: `make parity` does.
"""

import json
import random

import numpy as np
import pytest

from mediamill.model.processor import Processor
from mediamill.model.text.tokenizer import Tokenizer
from tests import oracle
from tests.checkpoints import Shape, write_checkpoint
from tests.parity.both import Ours, Reference
from tests.parity.cases import case
from tests.parity.vocabulary import SPECIAL, write_tokenizer

FIRST_SPECIAL = 151643
IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vocab_size": 151936,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": None,
}
ALPHABETS = (
    "abc XYZ 0123456789.,;:!?'\"()[]{}<>|_-+=/\\@#$%^&*~`",
    " \t\n\r\u00a0\u2028\u3000",
    "äöüßéèñçøåÆŒ e\u0301a\u0308",
    "漢字かなカナ한국어ไทยहिन्दी",
    "🙂👩‍👩‍👧🇩🇪🏽\u200d\ufe0f",
    "ﬁﬀ①½K\u212b\u1e9b\u0323",
)


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    wheel = request.config.getoption("qwen_wheel")
    folder = tmp_path_factory.mktemp("vocabulary") / "checkpoint"
    write_checkpoint(folder, Shape({**IDS, "num_hidden_layers": 2}), seed=1)
    write_tokenizer(wheel, folder / "tokenizer.json")
    defaults = {"eos_token_id": [151645, 151643], "pad_token_id": 151643, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder


def texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        letters = "".join(rng.choice(ALPHABETS) for _ in range(rng.randint(1, 3)))
        text = "".join(rng.choice(letters) for _ in range(rng.randint(0, 60)))
        control = f"<|{rng.choice(SPECIAL)}|>" if rng.random() < 0.1 else ""
        at = rng.randint(0, len(text))
        found.append(text[:at] + control + text[at:])
    return found


def test_ids_and_texts_equal_the_references(folder, parity_seed):
    own, reference = Tokenizer.load(folder), oracle.load_tokenizer(folder)
    assert [own.special[f"<|{name}|>"] for name in SPECIAL] == list(
        range(FIRST_SPECIAL, FIRST_SPECIAL + len(SPECIAL))
    )
    for text in texts(parity_seed, 5000):
        ids = own.encode(text)
        assert ids == reference(text)["input_ids"], text
        assert own.decode(ids) == reference.decode(ids, skip_special_tokens=True), text


def test_the_bytes_of_tokens_are_those_of_their_text(folder, parity_seed):
    own = Tokenizer.load(folder)
    for text in texts(parity_seed + 1, 2000):
        ids = own.encode(text)
        joined = b"".join(own.token_bytes(token) for token in ids).decode()
        assert joined == own.decode(ids, skip_special_tokens=False)


def test_ids_beyond_the_vocabulary_say_nothing(folder):
    rng = np.random.default_rng(0)
    unused = rng.integers(FIRST_SPECIAL + len(SPECIAL), 151936, 20).tolist()
    assert Processor.load(folder).decode(unused) == ""


@pytest.mark.parametrize("number", range(12))
def test_prompts_and_answers_equal_the_references(folder, parity_seed, number):
    one = case(parity_seed, number)
    mine, theirs = Ours(folder), Reference(folder)
    (own, visuals), wanted = mine.prepare(one), theirs.prepare(one)
    assert own.ids == wanted.ids
    assert mine.answer(one, own, visuals) == theirs.answer(one, wanted)
