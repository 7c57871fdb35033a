"""Configuration: the layouts of the hub and of the reference's writers, and clear refusals."""

import json

import pytest
import torch

from model.config import config_from_dict, load_config
from model.errors import ModelError
from model.qwen2_vl import Qwen2VL
from model.tiny.folder import config_dict
from tests.checkpoints import SHAPES, write_checkpoint

PUBLISHED = {
    # name: text settings, tied, parameters, of which vision (counts of the published checkpoints)
    "2B": ((1536, 8960, 28, 12, 2, 151936), True, 2_208_985_600, 665_271_296),
    "7B": ((3584, 18944, 28, 28, 4, 152064), False, 8_291_375_616, 675_759_104),
    "72B": ((8192, 29568, 80, 64, 8, 152064), False, 73_405_560_320, 699_356_672),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_shapes_have_the_published_numbers_of_parameters(size):
    (hidden, inner, layers, heads, kv_heads, vocabulary), tied, total, vision = PUBLISHED[size]
    raw = {
        "model_type": "qwen2_vl",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": hidden},
    }
    with torch.device("meta"):
        model = Qwen2VL(config_from_dict(raw, "test"))
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.visual.parameters()) == vision


def test_flat_and_nested_layouts_say_the_same(tmp_path):
    flat = write_checkpoint(tmp_path / "flat", SHAPES["embedded"])
    nested = json.loads((flat / "config.json").read_text())
    text = {"num_hidden_layers": nested.pop("num_hidden_layers"), "hidden_act": "silu"}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": nested.pop("rope_theta"),
        "mrope_section": nested.pop("rope_scaling")["mrope_section"],
    }
    # A flat copy beside the nested settings may be stale: the nested ones win.
    nested |= {"num_hidden_layers": 99, "text_config": text}
    assert config_from_dict(nested, "test") == load_config(flat)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "qwen3_vl"}, "model_type is 'qwen3_vl', expected 'qwen2_vl'"),
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are quantised (awq)"),
        ({"use_sliding_window": True}, "use_sliding_window is true, which is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope type is 'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"hidden_size": "128"}, "hidden_size is '128', expected a positive integer"),
        ({"vocab_size": None}, "vocab_size is None, expected a positive integer"),
        ({"num_attention_heads": 3}, "hidden_size 128 is not divisible by num_attention_heads 3"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads 4 is not divisible by num_key_value_heads 3",
        ),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            "mrope_section [16, 24, 24] sums to 64, expected half the head size, 16",
        ),
        (
            {"vision_config": {"hidden_size": 64, "embed_dim": 128, "num_heads": 4}},
            "vision_config.hidden_size 64 differs from the decoder's hidden_size 128",
        ),
        (
            {"vision_config": {"hidden_act": "silu"}},
            "vision_config.hidden_act is 'silu', expected 'quick_gelu'",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(change, sentence):
    with pytest.raises(ModelError) as caught:
        config_from_dict(config_dict() | change, "folder/config.json")
    assert str(caught.value).startswith("folder/config.json: ")
    assert sentence in str(caught.value)


def test_a_folder_without_a_readable_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match="it has no config"):
        load_config(tmp_path)
    for content, sentence in (("{", "cannot be read as JSON"), ("[]", "found a JSON list")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelError, match=sentence):
            load_config(tmp_path)
