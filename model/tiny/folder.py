"""Writes the files of the embedded checkpoint in hub format, except its weights.

They are the configuration, the preprocessor files, the tokenizer and the chat template. The
training writes the weights.
"""

import json
import shutil
from pathlib import Path

from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig, config_from_dict
from mediamill.model.tiny import CHECKPOINT
from mediamill.model.tiny.vocabulary import SPECIALS, VOCABULARY

# (min_pixels, max_pixels). The upper limits lie just above 3 x 4 and 3 x 3 visual tokens of 28 x 28
# pixels, so that square, 4:3 and 3:2 media of any resolution get few tokens.
IMAGE_PIXELS = (7056, 9800)
VIDEO_PIXELS = (4704, 7400)

CHAT_TEMPLATE = """\
{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}\
{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
{% set image_count.value = image_count.value + 1 %}\
{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}\
<|vision_start|><|image_pad|><|vision_end|>\
{% elif content['type'] == 'video' or 'video' in content %}\
{% set video_count.value = video_count.value + 1 %}\
{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}\
<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def config_dict() -> dict[str, object]:
    """Returns config.json of the embedded model, in the flat layout of the hub files."""
    first = VOCABULARY - len(SPECIALS)
    ids = {name: first + i for i, name in enumerate(SPECIALS)}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "max_window_layers": 4,
        "rms_norm_eps": 1e-6,
        # With a head size of 32 the usual 1e6 would make the spatial frequencies vanish.
        "rope_theta": 20.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "sliding_window": 2048,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "vision_config": {
            "depth": 4,
            "embed_dim": 128,
            "hidden_size": 128,
            "in_chans": 3,
            "mlp_ratio": 4,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }


def tiny_config() -> Qwen2VLConfig:
    """Returns the configuration of the embedded model."""
    return config_from_dict(config_dict(), "the embedded configuration")


def write_folder(folder: Path) -> None:
    """Writes all files of the checkpoint but its weights; the tokenizer is the shipped one."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_dict()
    eos, pad = config["eos_token_id"], config["pad_token_id"]
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": pad, "pad_token_id": pad, "eos_token_id": [eos, pad], "do_sample": False},
    )
    for prefix, kind, pixels in (("", "image", IMAGE_PIXELS), ("video_", "video", VIDEO_PIXELS)):
        processor = {f"{kind}_processor_type": f"Qwen2VL{kind.title()}Processor"}
        path = folder / f"{prefix}preprocessor_config.json"
        _write_json(path, _preprocessor(*pixels) | processor)
    if folder.resolve() != CHECKPOINT.resolve():
        shutil.copy(CHECKPOINT / "tokenizer.json", folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "padding_side": "left",
            "additional_special_tokens": list(SPECIALS[1:]),
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _preprocessor(min_pixels: int, max_pixels: int) -> dict[str, object]:
    return {
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "Qwen2VLProcessor",
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
