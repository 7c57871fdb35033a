"""What a request may ask for, what the checkpoint says by itself, and the repetition penalty."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ModelError
from model.sampling import GenerationDefaults, Sampling, penalise_repetition
from model.tiny import CHECKPOINT


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"temperature": 0.7}, "only greedy decoding is supported"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, expected a number above 0"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(wish, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(**wish)


def test_the_embedded_checkpoint_ends_at_two_tokens():
    assert GenerationDefaults.load(CHECKPOINT) == GenerationDefaults((508, 506), 1.0)


def write(folder, generation, config):
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 5, "repetition_penalty": 1.05}, {"eos_token_id": 9}, ((5,), 1.05)),
        ({"eos_token_id": [5, 6]}, {}, ((5, 6), 1.0)),
        ({"top_k": 1}, {"eos_token_id": 9}, ((9,), 1.0)),
        (None, {"eos_token_id": 9}, ((9,), 1.0)),
    ],
)
def test_the_defaults_of_a_folder(tmp_path, generation, config, expected):
    found = GenerationDefaults.load(write(tmp_path, generation, config))
    assert found == GenerationDefaults(*expected)


@pytest.mark.parametrize(
    ("generation", "config"),
    [({}, {}), ({"eos_token_id": "end"}, {}), ({"eos_token_id": []}, {}), ([], {})],
)
def test_a_folder_without_an_end_token_is_refused(tmp_path, generation, config):
    with pytest.raises(ModelError):
        GenerationDefaults.load(write(tmp_path, generation, config))


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12),
    st.floats(1.01, 3),
    st.data(),
)
def test_seen_tokens_become_less_likely_and_others_stay(values, penalty, data):
    logits = torch.tensor([values])
    seen = torch.tensor([[data.draw(st.booleans()) for _ in values]])
    result = penalise_repetition(logits, seen, torch.tensor([[penalty]]))
    assert torch.equal(result[~seen], logits[~seen])
    assert (result[seen] <= logits[seen]).all()
    positive = seen & (logits > 0)
    assert torch.allclose(result[positive] * penalty, logits[positive])
