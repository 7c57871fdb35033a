"""generation_config.json is read as the reference reads it, and what is not built is refused."""

import json

import pytest

from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
from mediamill.model.errors import ModelError
from mediamill.model.tiny import CHECKPOINT
from tests import oracle

# As the published Instruct checkpoints have it.
INSTRUCT = {
    "bos_token_id": 5,
    "pad_token_id": 5,
    "do_sample": True,
    "eos_token_id": [7, 5],
    "repetition_penalty": 1.05,
    "temperature": 0.01,
    "top_p": 0.001,
    "top_k": 1,
    "transformers_version": "4.37.0",
}


def write(folder, generation, config):
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_embedded_checkpoint_ends_at_two_tokens_and_is_greedy():
    assert GenerationDefaults.load(CHECKPOINT) == GenerationDefaults((508, 506))


@pytest.mark.parametrize(
    "generation",
    [
        INSTRUCT,
        {"eos_token_id": 5},
        {"eos_token_id": [5], "do_sample": False, "temperature": 0.7, "min_p": 0.1, "top_k": 0},
        {"eos_token_id": 5, "max_new_tokens": 9, "min_new_tokens": 2, "stop_strings": ["a", "b"]},
        {"eos_token_id": 5, "max_length": 99, "top_k": None, "num_beams": 1, "typical_p": 1.0},
    ],
)
def test_the_values_are_the_references(tmp_path, generation):
    found = GenerationDefaults.load(write(tmp_path, generation, {}))
    read = oracle.load_generation_config(tmp_path)
    given = {key: value for key, value in read.to_dict().items() if value is not None}
    reference = read._get_default_generation_params() | given
    ends = reference["eos_token_id"]
    assert found.eos_token_ids == tuple(ends if isinstance(ends, list) else [ends])
    for key in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
        assert getattr(found, key) == reference[key], key
    assert found.min_p == reference.get("min_p", 0.0)
    assert found.min_new_tokens == reference.get("min_new_tokens", 0)
    assert found.max_new_tokens == reference.get("max_new_tokens")
    assert found.max_length == given.get("max_length")
    assert found.stop == tuple(reference.get("stop_strings", ()))


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": 9}, (5,)),
        ({"top_k": 1}, {"eos_token_id": 9}, (9,)),
        ({"eos_token_id": None}, {"text_config": {"eos_token_id": [8, 9]}}, (8, 9)),
        (None, {"eos_token_id": 9}, (9,)),
    ],
)
def test_where_the_end_tokens_come_from(tmp_path, generation, config, expected):
    found = GenerationDefaults.load(str(write(tmp_path, generation, config)))
    assert found == GenerationDefaults(expected, top_k=1 if generation == {"top_k": 1} else 50)


@pytest.mark.parametrize(
    ("generation", "config"),
    [({}, {}), ({"eos_token_id": "end"}, {}), ({"eos_token_id": []}, {}), ([], {})],
)
def test_a_folder_without_an_end_token_is_refused(tmp_path, generation, config):
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        GenerationDefaults.load(write(tmp_path, generation, config))


NEUTRAL = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "typical_p": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "penalty_alpha": 0.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "sequence_bias": None,
    "min_length": 0,
    "exponential_decay_length_penalty": None,
    "use_cache": True,
    "length_penalty": 2.0,
    "early_stopping": True,
    "a_key_of_tomorrow": [1, 2],
}


def test_keys_that_change_nothing_are_taken(tmp_path):
    found = GenerationDefaults.load(write(tmp_path, {"eos_token_id": 5} | NEUTRAL, {}))
    assert found == GenerationDefaults((5,))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beams", 4),
        ("num_return_sequences", 2),
        ("typical_p", 0.9),
        ("top_h", 0.5),
        ("no_repeat_ngram_size", 3),
        ("encoder_no_repeat_ngram_size", 3),
        ("encoder_repetition_penalty", 1.2),
        ("bad_words_ids", [[3]]),
        ("sequence_bias", [[[3], 1.0]]),
        ("suppress_tokens", [3]),
        ("begin_suppress_tokens", [3]),
        ("forced_bos_token_id", 3),
        ("forced_eos_token_id", 3),
        ("guidance_scale", 1.5),
        ("penalty_alpha", 0.6),
        ("dola_layers", "high"),
        ("epsilon_cutoff", 3e-4),
        ("eta_cutoff", 3e-4),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("min_length", 3),
        ("max_time", 2.0),
        ("token_healing", True),
        ("watermarking_config", {"bias": 2.0}),
        ("temperature", -1),
        ("top_k", 2.5),
        ("top_p", 1.5),
        ("min_p", "some"),
        ("repetition_penalty", 0),
        ("min_new_tokens", -1),
        ("max_new_tokens", 0),
        ("do_sample", "yes"),
        ("stop_strings", [5]),
        ("stop_strings", [""]),
    ],
)
def test_what_would_change_the_text_is_refused_by_name(tmp_path, key, value):
    folder = write(tmp_path, {"eos_token_id": 5, key: value}, {})
    with pytest.raises(ModelError, match=rf"generation_config\.json: {key} is .*, expected"):
        GenerationDefaults.load(folder)
