"""Scaled rotary frequencies, against the reference's, and for each sequence alone."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.model.families.qwen2_vl.config import config_from_dict
from mediamill.model.layers.decoder import Decoder
from mediamill.model.layers.rope_types import sequence_lengths
from mediamill.model.tiny.folder import config_dict
from tests import oracle
from tests.checkpoints import Shape, write_checkpoint
from tests.model.batches import batch_of, our_inputs, ours, reference_inputs
from tests.model.prompts import MEDIA, prompt

SECTION = {"mrope_section": [4, 6, 6]}
SHORT, LONG = [1.0 + 0.05 * i for i in range(16)], [1.0 + 0.4 * i for i in range(16)]
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
SCALINGS = [
    {"type": "mrope"},
    {"type": "default", "rope_type": "default", "rope_theta": 50},
    {"type": "linear", "factor": 2.5},
    {"type": "dynamic", "factor": 2},
    {"type": "dynamic", "factor": 3.3, "rope_theta": 1e4},
    YARN,
    YARN | {"factor": None},
    YARN | {"truncate": False, "beta_fast": 8, "beta_slow": 2.5},
    YARN | {"attention_factor": 0.7},
    YARN | {"mscale": 0.9, "mscale_all_dim": 1.4},
    {"type": "yarn", "factor": 2.0},
    {"type": "yarn", "factor": 1e6, "original_max_position_embeddings": 1, "rope_theta": 1e6},
    LLAMA3 | {"original_max_position_embeddings": 16},
    LLAMA3,
    LONGROPE | {"original_max_position_embeddings": 16},
    LONGROPE | {"original_max_position_embeddings": 16, "factor": 3},
    LONGROPE | {"original_max_position_embeddings": 32, "attention_factor": 1.3},
    LONGROPE,
]


def both(scaling, **text):
    flat = config_dict() | {"max_position_embeddings": 64, "rope_theta": 20.0} | text
    flat["rope_scaling"] = SECTION | scaling
    reference = oracle.transformers.Qwen2VLConfig(
        **{**flat, "rope_scaling": dict(flat["rope_scaling"])}
    )
    with torch.device("meta"):
        decoder = Decoder(config_from_dict(flat, "test").text)
    decoder.reset_frequencies(torch.device("cpu"))
    network = oracle.transformers.models.qwen2_vl.modeling_qwen2_vl
    return decoder, lambda: network.Qwen2VLRotaryEmbedding(reference.text_config)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_cosines_and_sines_equal_the_references(scaling):
    decoder, fresh = both(scaling)
    kinds = set()
    for length, dtype in itertools.product(
        (1, 16, 17, 64, 65, 300), (torch.float32, torch.bfloat16)
    ):
        text = torch.arange(length)
        positions = torch.stack((text, text // 3, text // 2))
        want = fresh()(torch.zeros(1, dtype=dtype), positions[:, None])
        got = decoder.rotation(positions, [length], dtype)
        kinds.add(got[0][-1, 5].item())
        for ours_, theirs in zip(got, want, strict=True):
            assert ours_.dtype == dtype
            # Beyond the context a power may round otherwise, and then so may a bfloat16.
            tolerance = 0 if length <= 64 else 2e-5 if dtype == torch.float32 else 2**-8
            assert torch.allclose(ours_, theirs[0], atol=tolerance, rtol=0)
    assert len(kinds) > 4, "angles of no variety prove nothing"


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([SCALINGS[4], SCALINGS[14]]),
    st.lists(st.integers(1, 100), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_no_sequence_changes_another(scaling, lengths, seed):
    decoder, _ = both(scaling)
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 90, (3, n), generator=generator) for n in lengths]
    together = decoder.rotation(torch.cat(rows, dim=1), lengths, torch.float32)
    alone = [decoder.rotation(row, [row.shape[1]], torch.float32) for row in rows]
    for axis in (0, 1):
        want = torch.cat([rotation[axis] for rotation in alone])
        assert torch.allclose(together[axis], want, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.randoms())
def test_lengths_of_sequences(lengths, random):
    rows = [[random.randrange(50) for _ in range(n)] for n in lengths]
    positions = torch.tensor([[p for row in rows for p in row]] * 3)
    got = sequence_lengths(positions, lengths).tolist()
    assert got == [max(row) + 1 for row in rows for _ in row]


@pytest.mark.parametrize(
    "scaling",
    [LONGROPE | {"original_max_position_embeddings": 24}, {"type": "dynamic", "factor": 3}],
)
@torch.inference_mode()
def test_a_batch_on_both_sides_of_the_limit_equals_each_alone_and_the_reference(tmp_path, scaling):
    shape = Shape({"rope_scaling": SECTION | scaling, "max_position_embeddings": 24})
    folder = write_checkpoint(tmp_path, shape)
    cases = [prompt(i, MEDIA[i], words=words) for i, words in ((1, 3), (4, 20), (0, 23), (6, 9))]
    ids, mask = batch_of(cases, "left")
    model = ours(folder)
    got = model(ids, attention_mask=mask, **our_inputs(cases)).logits
    for row, case in enumerate(cases):
        alone = torch.tensor([case.ids])
        inputs = reference_inputs([case], alone, torch.ones_like(alone))
        want = oracle.load_model(folder)(**inputs).logits[0]
        assert (got[row][mask[row].bool()] - want).abs().max() < 1e-4
        # Token by token the length grows; the keys before keep their own angles, as there.
        reference = oracle.load_model(folder)
        first = reference(**inputs | {"attention_mask": None}, use_cache=True)
        cache = model.new_cache(1)
        model(alone, **our_inputs([case]), cache=cache)
        for token in (3, 4):
            step = torch.tensor([[token]])
            first = reference(input_ids=step, past_key_values=first.past_key_values, use_cache=True)
            assert (model(step, cache=cache).logits - first.logits).abs().max() < 1e-4
