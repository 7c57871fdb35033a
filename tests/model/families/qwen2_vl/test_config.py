"""Configuration: the layouts of the hub and of the reference's writers, and clear refusals."""

import json
from dataclasses import replace

import pytest
import torch

from mediamill.model.errors import ModelError
from mediamill.model.families.qwen2_vl.config import config_from_dict, load_config
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.tiny.folder import config_dict
from tests import oracle
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


YARN = {"type": "yarn", "factor": 4.0, "mrope_section": [4, 6, 6]}
LONG = {"type": "longrope", "short_factor": [1] * 16, "long_factor": [2.0] * 16}
LLAMA3 = {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
VISION = {"hidden_size": 128, "embed_dim": 128, "num_heads": 4}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "qwen3_vl"}, "model_type is 'qwen3_vl', expected 'qwen2_vl'"),
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are quantised (awq)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantised (gptq)"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised (unknown)"),
        ({"quantization_config": "fp8"}, "the weights are quantised (fp8)"),
        ({"text_config": {"quantization_config": {"quant_method": "x"}}}, "quantised (x)"),
        ({"text_config": [1]}, "text_config is [1], expected an object"),
        ({"hidden_size": "128"}, "hidden_size is '128', expected a positive integer"),
        ({"hidden_size": True}, "hidden_size is True, expected a positive integer"),
        ({"vocab_size": None}, "vocab_size is None, expected a positive integer"),
        ({"vocab_size": -5}, "vocab_size is -5, expected a positive integer"),
        ({"max_position_embeddings": 1.5}, "max_position_embeddings is 1.5, expected a positive"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a positive number"),
        ({"rope_theta": float("inf")}, "rope_theta is inf, expected a positive number"),
        ({"attention_dropout": 1}, "attention_dropout is 1, expected a number of at least 0"),
        ({"initializer_range": "a"}, "initializer_range is 'a', expected a positive number"),
        ({"image_token_id": -1}, "image_token_id is -1, expected an integer >= 0"),
        ({"pad_token_id": 520}, "pad_token_id is 520, expected less than vocab_size, 520"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', expected true or false"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8', expected 'float32' or"),
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh', expected 'silu' or"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1"),
        ({"num_attention_heads": 3}, "hidden_size 128 is not divisible by num_attention_heads 3"),
        ({"num_key_value_heads": 3}, "4 is not divisible by num_key_value_heads 3"),
        ({"rope_scaling": {"mrope_section": [16, 24, 24]}}, "sums to 64, expected half the head"),
        ({"rope_scaling": {"mrope_section": [16]}}, "rope mrope_section is [16], expected three"),
        ({"rope_scaling": {"mrope_section": "abc"}}, "mrope_section is 'abc', expected three"),
        ({"rope_scaling": {"type": "su"}}, "rope type is 'su', expected 'mrope', 'default'"),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope type is ['yarn'], expected 'mrope'"),
        ({"rope_scaling": YARN | {"speed": 1}}, "rope key 'speed' is not one of rope type 'yarn'"),
        ({"rope_scaling": {"factor": 2}}, "rope key 'factor' is not one of rope type 'default'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type 'yarn' has no key 'factor', which it"),
        ({"rope_scaling": YARN | {"factor": "4"}}, "rope factor is '4', expected a positive"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "rope truncate is 1, expected true or false"),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 512},
            "original_max_position_embeddings is 512, expected 2048, as in the rope object",
        ),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "rope factor is None, expected a"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope type 'dynamic' has no key 'factor'"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "expected more than low_freq_factor"),
        ({"rope_scaling": LONG | {"long_factor": [1.0]}}, "long_factor has 1 numbers, expected 16"),
        ({"rope_scaling": LONG | {"short_factor": 2}}, "expected a list of 16 positive numbers"),
        ({"rope_scaling": 3}, "rope_scaling is 3, expected an object"),
        (
            {"layer_types": ["full_attention"] * 3},
            "layer_types has 3 entries, expected one for each of the 4 layers",
        ),
        ({"layer_types": ["linear_attention"] * 4}, "expected a list of 'full_attention' and"),
        ({"layer_types": ["sliding_attention"] * 4}, "but there is no window"),
        (
            {"use_sliding_window": True, "sliding_window": 0},
            "sliding_window is 0, expected a positive",
        ),
        (
            {"vision_config": VISION | {"hidden_size": 64}},
            "vision_config.hidden_size 64 differs from the decoder's hidden_size 128",
        ),
        ({"vision_config": VISION | {"hidden_act": "x"}}, "vision_config.hidden_act is 'x'"),
        ({"vision_config": VISION | {"in_chans": 1}}, "in_channels is 1, expected 3: pictures"),
        ({"vision_config": VISION | {"patch_size": [14, 16]}}, "patch_size is [14, 16], expected"),
        ({"vision_config": VISION | {"depth": 0}}, "vision_config.depth is 0, expected a positive"),
        ({"vision_config": VISION | {"num_heads": 3}}, "do not give a head size divisible by 4"),
        (
            {"vision_config": VISION | {"rope_parameters": {"rope_type": "yarn"}}},
            "vision_config.rope_parameters.rope_type is 'yarn', expected 'axial'",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(change, sentence):
    with pytest.raises(ModelError) as caught:
        config_from_dict(config_dict() | change, "folder/config.json")
    assert str(caught.value).startswith("folder/config.json: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_read():
    layers = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    raw = config_dict() | {
        "use_sliding_window": True,
        "sliding_window": 9,
        "layer_types": layers,
        "attention_dropout": 0.1,
        "initializer_range": 0.03,
        "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": None,
        "vision_config": VISION
        | {"patch_size": [16, 16], "temporal_patch_size": 1, "spatial_merge_size": 4}
        | {"mlp_ratio": 2, "hidden_act": "relu", "rope_parameters": {"rope_theta": 50}},
    }
    config = config_from_dict(raw, "test")
    assert [config.text.window(i) for i in range(4)] == [None, 9, None, 9]
    assert config.text.attention_dropout == 0.1
    assert config.text.initializer_range == 0.03
    assert config.text.num_key_value_heads == 4
    vision = config.vision
    sizes = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    assert sizes == (16, 1, 4)
    assert vision.patch_dim == 3 * 1 * 16 * 16
    assert (vision.mlp_ratio, vision.hidden_act, vision.rope_theta) == (2.0, "relu", 50.0)
    del raw["layer_types"]
    raw |= {"max_window_layers": 1}
    assert config_from_dict(raw, "test").text.windows == (None, 9, 9, 9)
    raw |= {"sliding_window": None}
    assert config_from_dict(raw, "test").text.windows == ()
    nested = {"rope_scaling": YARN, "original_max_position_embeddings": 512}
    both = config_from_dict(config_dict() | {"text_config": nested}, "test")
    assert both.text.rope.original == 512


def test_keys_that_nobody_reads_are_listed():
    raw = config_dict() | {"use_cache": True, "speed": 1, "transformers_version": "5.23.0"}
    raw["text_config"] = {"num_hidden_layers": 2, "depth": 3, "bos_token_id": 1}
    raw["vision_config"] = {**raw["vision_config"], "window_size": 112}
    config = config_from_dict(raw, "test")
    assert config.unknown_keys == ("speed", "text_config.depth", "vision_config.window_size")
    assert config_from_dict(config_dict(), "test").unknown_keys == ()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_references_writer_saves_says_the_same(tmp_path, shape):
    folder = write_checkpoint(tmp_path / "ours", SHAPES[shape])
    reference = oracle.transformers.Qwen2VLConfig.from_pretrained(str(folder))
    reference.save_pretrained(str(tmp_path / "theirs"))
    ours, theirs = load_config(folder), load_config(tmp_path / "theirs")
    assert theirs.unknown_keys == ()
    assert replace(theirs, dtype=None) == replace(ours, dtype=None)


def test_a_folder_without_a_readable_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match="it has no config"):
        load_config(tmp_path)
    for content, sentence in (("{", "cannot be read as JSON"), ("[]", "found a JSON list")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelError, match=sentence):
            load_config(tmp_path)
