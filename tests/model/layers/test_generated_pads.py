"""A visual pad token that the network itself writes is a token like others, as in the reference."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mediamill.model.engine import Engine, Request
from mediamill.model.sampling import Sampling
from tests import oracle
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.batches import our_inputs, ours, reference_inputs
from tests.model.prompts import IMAGE, MEDIA, VIDEO, prompt

NEW = 6


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint", SHAPES["untied, sharded"], 5)


def swap_rows_of_the_head(folder, first, second):
    """Exchange what the network says of two tokens, in the checkpoint's file."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    path = folder / index["weight_map"]["lm_head.weight"]
    tensors = load_file(path)
    head = tensors["lm_head.weight"]
    head[[first, second]] = head[[second, first]].clone()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("pad", [IMAGE, VIDEO])
@torch.inference_mode()
def test_generation_goes_on_behind_a_pad_token(folder, pad):
    case = prompt(3, MEDIA[3])
    ids = torch.tensor([case.ids])
    sampling = Sampling(max_new_tokens=NEW, eos_token_ids=(), repetition_penalty=1.0)
    request = Request("r", case.ids, case.visuals, sampling)
    (free,) = Engine.load(folder, device="cpu", mrope="hf5").generate([request])
    # The pad token takes the place of the token that would come second.
    swap_rows_of_the_head(folder, free.output_ids[1], pad)
    reference = oracle.load_model(folder)
    (got,) = Engine.load(folder, device="cpu", mrope="hf5").generate([request])
    assert pad in got.output_ids[:-1]
    want = reference.generate(
        **reference_inputs([case], ids, torch.ones_like(ids)),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=519 if pad == IMAGE else 518,
    )
    assert got.output_ids == want[0, ids.shape[1] :].tolist()


@torch.inference_mode()
def test_a_pass_with_a_cache_takes_pad_tokens_without_media(folder):
    case = prompt(3, MEDIA[3])
    ids, model = torch.tensor([case.ids]), ours(folder)
    reference = oracle.load_model(folder)
    inputs = reference_inputs([case], ids, torch.ones_like(ids)) | {"attention_mask": None}
    first = reference(**inputs, use_cache=True)
    cache = model.new_cache(1)
    model(ids, **our_inputs([case]), cache=cache)
    step = torch.tensor([[4, IMAGE, VIDEO, 5]])
    want = reference(input_ids=step, past_key_values=first.past_key_values, use_cache=True).logits
    assert (model(step, cache=cache).logits - want).abs().max() < 1e-4
    with pytest.raises(ValueError, match="hold 1 pad tokens of id 518, but 0 visual tokens"):
        model(step)
