"""Trains the tiny model's tokenizer on the texts of the synthetic scenes.

The shipped weights need the token ids of the shipped tokenizer.json. A new tokenizer has other ids
for its tokens, since the shipped one was trained when clips had one colour more. Run
`python -m mediamill.model.tiny.vocabulary` only to change the words of the scenes, and then train
the model again.
"""

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mediamill.model.tiny import CHECKPOINT, questions, scenes

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 520
# The pre-tokenizer pattern of Qwen2's published tokenizer.json.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer() -> Tokenizer:
    """Trains a byte-level BPE, with the special tokens in Qwen2-VL's order.

    Raises ValueError if the texts do not give VOCABULARY tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    size = VOCABULARY - len(SPECIALS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    learned = tokenizer.get_vocab_size()
    if learned != size:
        raise ValueError(
            f"the texts of the scenes gave {learned} tokens, expected {size}: adjust VOCABULARY"
        )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _texts() -> list[str]:
    """Returns what the model reads and writes, with frequent texts repeated."""
    rng = np.random.default_rng(0)
    texts = []
    for kind in scenes.KINDS:
        for _ in range(60):
            if kind == "clip":
                scene = scenes.draw_clip(rng, 16, 16, 1)
            else:
                scene = scenes.draw_picture(rng, kind, 16, 16)
            texts.append(scene.caption)
            texts.extend(text for pair in questions.questions(scene) for text in pair)
    names = [*scenes.TAGS, *questions.NUMBERS.values()]
    texts += names * 20 + [f" {name}" for name in names] * 40
    prompts = [*questions.CAPTION_PROMPTS, *questions.CLIP_PROMPTS]
    texts += [form for prompt in prompts for form in (prompt, prompt.lower())] * 10
    texts += [
        "Please tell me what you see.",
        "Answer yes or no.",
        "Look at these photos and explain them briefly.",
    ]
    return texts + ["system\nYou are a helpful assistant.\n", "user\n", "assistant\n"] * 100


if __name__ == "__main__":
    train_tokenizer().save(str(CHECKPOINT / "tokenizer.json"))
