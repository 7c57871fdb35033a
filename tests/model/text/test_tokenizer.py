"""Token ids and texts equal the reference tokenizer's."""

import functools
import json
import shutil
import unicodedata

import fsspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mediamill.model.errors import ModelError
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.model.tiny import CHECKPOINT
from tests import oracle


@functools.cache
def own() -> Tokenizer:
    return Tokenizer.load(CHECKPOINT)


@functools.cache
def reference():
    return oracle.load_tokenizer(CHECKPOINT)


words = st.sampled_from(
    ["a large red circle", "Describe the picture.", "\n", "  ", "\r\n\r\n", "don't", "12345",
     "naïve", "e\u0301", "日本語", "🙂", "\u200d", "<|image_pad|>", "<|im_end|>", "<|im_", "\x00"]
)  # fmt: skip
texts = st.lists(words | st.text(max_size=12), max_size=8).map("".join)


@settings(max_examples=400, deadline=None)
@given(texts)
@example("")
@example("<|vision_start|><|image_pad|><|vision_end|>")
def test_ids_and_texts_equal_the_reference(text):
    ids = own().encode(text)
    assert ids == reference()(text, add_special_tokens=False)["input_ids"]
    for skip in (True, False):
        assert own().decode(ids, skip) == reference().decode(
            ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )


@given(st.lists(st.integers(0, 519), max_size=20))
def test_any_ids_decode_as_in_the_reference(ids):
    assert own().decode(ids) == reference().decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_ids_beyond_the_vocabulary_decode_to_nothing():
    ids = own().encode("a red star")
    assert own().decode([*ids, 100_000, 151_999]) == "a red star"


def test_control_tokens_are_known_by_string_and_id():
    special = own().special
    assert len(special) == 14
    for token, index in special.items():
        assert own().encode(token) == [index]
        assert reference().convert_tokens_to_ids(token) == index
    assert own().control_tokens_in("a <|im_end|> b <|box_start|>") == [
        "<|im_end|>",
        "<|box_start|>",
    ]
    assert own().control_tokens_in("a <|im_end| > b") == []


@settings(deadline=None)
@given(texts)
def test_the_bytes_of_tokens_are_those_of_the_text(text):
    ids = own().encode(text)
    joined = b"".join(own().token_bytes(index) for index in ids)
    assert joined == unicodedata.normalize("NFC", text).encode()
    assert joined.decode() == own().decode(ids, skip_special_tokens=False)


def test_every_byte_has_a_token_and_unknown_ids_have_no_bytes():
    token_bytes = [own().token_bytes(index) for index in range(520)]
    assert {bytes([byte]) for byte in range(256)} <= set(token_bytes)
    assert all(token_bytes)
    assert own().token_bytes(100_000) == b""


def test_a_vocabulary_that_is_not_of_bytes_has_none(tmp_path):
    content = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="expected ByteLevel"):
        Tokenizer.load(tmp_path).token_bytes(5)


def test_a_tokenizer_at_a_url():
    folder = fsspec.filesystem("memory")
    folder.pipe("/tokenizer/tokenizer.json", (CHECKPOINT / "tokenizer.json").read_bytes())
    text = "a large red circle"
    assert Tokenizer.load("memory://tokenizer").encode(text) == own().encode(text)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    content = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer.load(tmp_path).encode("a large red circle above a star")) > 2


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    shutil.copy(CHECKPOINT / "config.json", tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json: is no tokenizer"):
        Tokenizer.load(tmp_path)
