"""A network that is optimized for inference, against the plain one."""

import pytest
import torch
from torch import nn

from mediamill.model.layers.attention import PackedCausalAttention
from mediamill.model.layers.kernels import fastest_attention
from mediamill.model.layers.linear import MergedLinear, PrepackedLinear, can_prepack
from mediamill.model.layers.optimize import optimize_for_inference
from mediamill.model.layers.rope import rotate, rotate_
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.batches import ours

CPU = torch.device("cpu")
LENGTHS = [5, 1, 9]


@pytest.fixture(
    scope="module",
    params=["embedded", "untied, sharded", "2B's heads", "dynamic", "sliding window"],
)
def folder(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPES[request.param], seed=5)


def states(model, token_indices=None, name="sdpa"):
    ids = torch.randint(0, 500, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(n) for n in LENGTHS]).expand(3, -1)
    backend = PackedCausalAttention(LENGTHS, name)
    return model.hidden_states(model.model.embed_tokens(ids), positions, backend, token_indices)


@torch.inference_mode()
def test_an_optimized_network_gives_the_plain_ones_states_and_logits(folder):
    want, plain = states(ours(folder)), ours(folder)
    model = optimize_for_inference(ours(folder))
    assert isinstance(model.model.layers[0].self_attn.qkv, MergedLinear)
    for name in ("sdpa", "eager", "products"):
        got = states(model, name=name)
        assert (got - want).abs().max() < 1e-4
    assert (model.logits(got) - plain.logits(want)).abs().max() < 1e-4
    assert want.std() > 0.3


@pytest.mark.parametrize("optimized", [False, True])
@torch.inference_mode()
def test_the_states_of_chosen_tokens_are_those_of_all(folder, optimized):
    model = ours(folder)
    if optimized:
        optimize_for_inference(model)
    chosen = torch.tensor([4, 14, 5])
    assert (states(model, chosen) - states(model)[chosen]).abs().max() < 2e-5


@torch.inference_mode()
def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_one(tmp_path):
    folder = write_checkpoint(tmp_path, SHAPES["2B's heads"], seed=5)
    want = states(ours(folder))
    plain = ours(folder, dtype=torch.bfloat16)
    of_plain = (states(plain).float() - want).square().mean().sqrt()
    for name in ("sdpa", "products"):
        got = states(optimize_for_inference(ours(folder, dtype=torch.bfloat16)), name=name).float()
        assert (got - want).square().mean().sqrt() < 1.15 * of_plain


def test_the_old_weights_are_freed(tmp_path):
    folder = write_checkpoint(tmp_path, SHAPES["untied, sharded"], seed=5)
    model = optimize_for_inference(ours(folder))
    left = {name for name, _ in model.named_parameters() if name.endswith("proj.weight")}
    if can_prepack(CPU, torch.float32):
        assert left == {"visual.patch_embed.proj.weight"}
        assert not any(isinstance(module, nn.Linear) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 24), (0, 24), (1, 24)])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_packed_layer_is_the_layer(dtype, shape, bias):
    if not can_prepack(CPU, dtype):
        pytest.skip("oneDNN has no such products here")
    generator = torch.Generator().manual_seed(6)
    linear = nn.Linear(24, 40, bias=bias, dtype=dtype)
    x = torch.randn(shape, generator=generator).to(dtype)
    got, want = PrepackedLinear(linear)(x), linear(x)
    assert got.shape == want.shape
    if dtype == torch.bfloat16:
        assert torch.equal(got, want)
    else:
        assert torch.allclose(got, want, atol=1e-5)
    # A view that is not contiguous, as a part of a merged product is.
    wide = torch.randn(6, 48, generator=generator).to(dtype)[:, 24:]
    assert torch.allclose(PrepackedLinear(linear)(wide), linear(wide), atol=1e-5)


def test_other_devices_and_dtypes_are_not_packed():
    assert not can_prepack(torch.device("cuda"), torch.bfloat16)
    assert not can_prepack(CPU, torch.float64)


def test_only_bfloat16_on_a_cpu_takes_another_attention():
    assert fastest_attention(CPU, torch.bfloat16) == "products"
    assert fastest_attention(CPU, torch.float32) == "sdpa"
    assert fastest_attention(torch.device("meta"), torch.bfloat16) == "sdpa"


def test_turning_in_place_is_turning():
    generator = torch.Generator().manual_seed(7)
    angles = torch.rand(9, 8, generator=generator) * 6
    full = torch.cat((angles, angles), dim=1)
    x = torch.randn(9, 5, 16, generator=generator)
    whole = x.clone()
    got = rotate_(whole[:, 1:4], full.cos(), full.sin())
    assert torch.allclose(got, rotate(x[:, 1:4], full.cos(), full.sin()), atol=1e-6)
    assert torch.equal(whole[:, ::4], x[:, ::4])
    assert not torch.equal(got, x[:, 1:4])
