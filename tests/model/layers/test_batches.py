"""Batches of prepared prompts equal the reference processor's output, padding included."""

import functools
import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mediamill.model.inputs import VisualInput
from mediamill.model.processor import Processor, VideoRules
from mediamill.model.tiny import CHECKPOINT
from tests import media, oracle

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
ALL = VideoRules(do_sample_frames=False)


@dataclass(frozen=True)
class Prompt:
    input_ids: list[int]
    visuals: tuple[VisualInput, ...]


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def picture(height: int, width: int) -> np.ndarray:
    return media.draw(height, width, seed=height)


def clip(count: int) -> np.ndarray:
    return np.stack(media.numbered_frames(count))


CASES: dict[str, tuple[list[dict], list[np.ndarray]]] = {
    "picture": ([user(IMAGE, text("Describe the picture."))], [picture(80, 120)]),
    "two pictures": ([user(IMAGE, IMAGE, text("And?"))], [picture(60, 60), picture(33, 500)]),
    "text": ([user(text("Hello."))], []),
    "pictures and a clip": (
        [user(IMAGE, text("First"), VIDEO), {"role": "assistant", "content": "Yes."}, user(IMAGE)],
        [picture(44, 90), clip(5), picture(100, 70)],
    ),
    "clip": ([user(VIDEO, text("What moves in the clip, and where to?"))], [clip(4)]),
}
MIXES = [
    ["picture", "two pictures", "text", "pictures and a clip"],
    ["text", "pictures and a clip", "clip", "picture"],
    ["clip", "clip"],
    ["text", "text"],
    ["picture"],
]


@functools.cache
def our_processor() -> Processor:
    return Processor.load(CHECKPOINT)


@functools.cache
def reference():
    return oracle.load_processor(CHECKPOINT)


def prepared(name: str) -> Prompt:
    chat, files = CASES[name]
    visuals = tuple(
        our_processor().prepare_picture(pixels)[0]
        if pixels.ndim == 3
        else our_processor().prepare_frames(pixels, video=ALL)[0]
        for pixels in files
    )
    return Prompt(our_processor().build_prompt(chat, visuals), visuals)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("names", MIXES)
def test_batches_equal_the_reference(names, side):
    files = [pixels for name in names for pixels in CASES[name][1]]
    texts = [
        reference().apply_chat_template(CASES[name][0], tokenize=False, add_generation_prompt=True)
        for name in names
    ]
    expected = reference()(
        text=texts,
        images=[pixels for pixels in files if pixels.ndim == 3] or None,
        videos=[pixels for pixels in files if pixels.ndim == 4] or None,
        padding=True,
        padding_side=side,
        return_tensors="pt",
    )
    batch = our_processor().collate([prepared(name) for name in names], side)
    assert batch.keys() == expected.keys() - {"mm_token_type_ids"}
    for key, value in batch.items():
        assert value.dtype == expected[key].dtype
        assert torch.equal(value, expected[key]), key


def test_the_reference_pads_on_the_left_too():
    prompts = [prepared("text"), prepared("clip")]
    batch = our_processor().collate(prompts)
    assert batch["attention_mask"][0, 0] == 0
    assert batch["input_ids"][0, 0] == our_processor().tokenizer.special["<|endoftext|>"]
    assert reference().tokenizer.padding_side == "left"


def test_the_pad_token_of_the_checkpoint(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "pad_token": {"content": "<|vision_pad|>"}}))
    assert Processor.load(tmp_path).pad_id == our_processor().tokenizer.special["<|vision_pad|>"]
    path.write_text(json.dumps({**config, "pad_token": "word"}))
    with pytest.raises(ValueError, match="pad_token is 'word'"):
        Processor.load(tmp_path)
    path.unlink()
    assert Processor.load(tmp_path).pad_id == our_processor().pad_id


def test_batches_without_sense():
    with pytest.raises(ValueError, match="no prompts"):
        our_processor().collate([])
    with pytest.raises(ValueError, match="left or right"):
        our_processor().collate([prepared("text")], "both")
