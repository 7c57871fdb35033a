"""How long a context is, and was before it was stretched: as the reference reads it."""

import copy

import pytest
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.errors import ModelError
from mediamill.model.families.qwen2_vl.config import config_from_dict
from mediamill.model.sampling import Sampling
from mediamill.model.tiny.folder import config_dict
from tests import oracle
from tests.checkpoints import Shape, write_checkpoint

SECTION = {"mrope_section": [4, 6, 6]}
LONG = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("inside", [{}, {"original_max_position_embeddings": 512}])
@pytest.mark.parametrize("beside", [{}, {"original_max_position_embeddings": 100}])
def test_the_length_before_the_stretch_is_read_where_the_reference_reads_it(nested, inside, beside):
    raw = config_dict() | {"rope_scaling": {"type": "yarn", "factor": 4.0, **SECTION} | inside}
    raw |= beside
    if nested:
        text = {k: v for k, v in raw.items() if k not in ("vision_config", "architectures")}
        raw = {k: raw[k] for k in ("model_type", "vision_config", "image_token_id")}
        raw["text_config"] = text
    elif beside:
        # There the reference leaves it unread, so it may only repeat what is read.
        with pytest.raises(ModelError, match="original_max_position_embeddings is 100, expected"):
            config_from_dict(raw, "test")
        return
    got = config_from_dict(raw, "test").text.rope.original
    assert got == next(iter({**inside, **beside}.values()), 2048)
    theirs = oracle.transformers.Qwen2VLConfig(**copy.deepcopy(raw)).text_config
    # The reference settles it when the network is built.
    oracle.transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VLRotaryEmbedding(theirs)
    assert theirs.rope_parameters["original_max_position_embeddings"] == got


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"type": "mrope"}, 2048),
        ({"type": "linear", "factor": 4.0}, 8192),
        ({"type": "dynamic", "factor": 1.5}, 3072),
        ({"type": "yarn", "factor": 4.0}, 8192),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "yarn", "factor": None, "original_max_position_embeddings": 512}, 2048),
        (LONG | {"original_max_position_embeddings": 512}, 2048),
    ],
)
def test_a_stretch_makes_the_context_longer(rope, length):
    config = config_from_dict(config_dict() | {"rope_scaling": SECTION | rope}, "test")
    assert config.text.context_length == length


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"head_dim": 64}, "head_dim is 64, expected hidden_size / num_attention_heads, 32"),
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": None},
            "max_window_layers is None, expected the number of layers without a sliding window",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "rope_theta": 1, **SECTION}},
            "rope_theta is 1.0, expected more than 1",
        ),
        (
            {"rope_scaling": LONG | SECTION | {"original_max_position_embeddings": 1}},
            "original_max_position_embeddings is 1, expected at least 2",
        ),
    ],
)
def test_lengths_that_no_rule_can_use_are_refused(change, sentence):
    with pytest.raises(ModelError) as caught:
        config_from_dict(config_dict() | change, "test")
    assert str(caught.value) == f"test: {sentence}"


def test_the_engine_answers_within_the_stretched_context(tmp_path):
    rope = {"type": "dynamic", "factor": 2.0, **SECTION}
    shape = Shape(
        {"num_hidden_layers": 1, "max_position_embeddings": 64, "rope_scaling": rope}, {"depth": 1}
    )
    folder = write_checkpoint(tmp_path, shape)
    engine = Engine.load(folder, device="cpu", mrope="hf5")
    ids = [(7 * i) % 500 for i in range(60)]
    sampling = Sampling(max_new_tokens=100, eos_token_ids=(), repetition_penalty=1.0)
    (done,) = engine.generate([Request("r", ids, (), sampling)])
    assert len(done.output_ids) == 128 - 60
    reference = oracle.load_model(folder)
    want = reference.generate(
        input_ids=torch.tensor([ids]), max_new_tokens=68, do_sample=False, eos_token_id=519
    )
    assert done.output_ids == want[0, 60:].tolist()
    (refused,) = engine.generate([Request("r", ids * 3, (), sampling)])
    assert refused.error == "the prompt has 180 tokens, and the model's context is 128"
