"""Float8 linears: the rounding, torch's own product of float8, and what is converted."""

import pytest
import torch
from torch import nn

from mediamill.model.families.initialize import initialize_weights
from mediamill.model.families.qwen2_vl.config import load_config
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.layers.fp8 import (
    FLOAT8,
    LARGEST,
    Float8Linear,
    convert_linears,
    multiplies_float8,
    rounded,
)
from tests.checkpoints import SHAPES, write_checkpoint


def random_linear(inputs, outputs, bias, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(inputs)
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return linear, (torch.randn(9, inputs, generator=generator) * 3).to(dtype)


def test_rows_are_rounded_to_the_formats_precision():
    x = torch.randn(50, 64) * torch.logspace(-6, 6, 50)[:, None]
    values, scale = rounded(x)
    assert values.dtype == FLOAT8
    again = values.float() * scale
    largest = x.abs().amax(1, keepdim=True)
    assert torch.allclose(again.abs().amax(1, keepdim=True), largest, rtol=1e-6)
    # Three bits of mantissa: half a step is 1/16 of a normal number. Subnormals end at 2**-9.
    assert ((again - x).abs() <= x.abs() / 16 + largest / LARGEST * 2**-10 * 1.001).all()


def test_rows_of_zeros_and_of_huge_numbers_stay_finite():
    values, scale = rounded(torch.tensor([[0.0, 0.0], [3e38, -3e38]]))
    assert torch.equal(values[0].float(), torch.zeros(2))
    assert torch.isfinite(values.float() * scale).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (16, 160)])
def test_the_emulation_gives_what_torchs_product_of_float8_gives(inputs, outputs, bias):
    linear, x = random_linear(inputs, outputs, bias)
    emulated = Float8Linear(linear, hardware=False)(x)
    # torch multiplies row-wise scaled float8 on a CPU too, slowly.
    multiplied = Float8Linear(linear, hardware=True)(x)
    assert torch.allclose(emulated.float(), multiplied.float(), rtol=2**-7, atol=1e-3)
    exact = linear(x).float()
    assert (emulated.float() - exact).norm() < 0.06 * exact.norm()


def test_any_leading_shape_and_dtype():
    linear, x = random_linear(32, 16, True, torch.float32)
    layer = Float8Linear(linear, hardware=False)
    assert torch.equal(layer(x.view(3, 3, 32)), layer(x).view(3, 3, 16))
    assert layer(x).dtype == torch.float32


def network(tmp_path):
    folder = write_checkpoint(tmp_path, SHAPES["2B's heads"])
    return initialize_weights(Qwen2VL(load_config(folder)).eval())


def test_layers_are_converted_and_nothing_else(tmp_path):
    model = network(tmp_path)
    linears = {name for name, m in model.named_modules() if type(m) is nn.Linear}
    wide = {
        name
        for name in linears
        if not any(side % 16 for side in model.get_submodule(name).weight.shape)
    }
    count = convert_linears(model, ("vision",))
    found = {name for name, m in model.named_modules() if isinstance(m, Float8Linear)}
    assert found == {name for name in wide if name.startswith("visual.")}
    assert count == len(found) > 0
    convert_linears(model)
    found = {name for name, m in model.named_modules() if isinstance(m, Float8Linear)}
    assert found == wide - {"lm_head"}
    assert type(model.lm_head) is nn.Linear
    assert isinstance(model.visual.patch_embed.proj, nn.Conv3d)


def test_the_whole_network_stays_near_itself(tmp_path):
    model = network(tmp_path)
    ids = torch.arange(20)[None] % model.config.text.vocab_size
    with torch.inference_mode():
        exact = model.text(ids).last_hidden_state
        convert_linears(model)
        found = model.text(ids).last_hidden_state
    assert not torch.equal(exact, found)
    assert (found - exact).norm() < 0.15 * exact.norm()


def test_a_cpu_does_not_count_as_hardware_for_float8():
    assert not multiplies_float8(torch.device("cpu"))


@pytest.mark.gpu
def test_the_gpu_gives_what_the_emulation_gives():
    device = torch.device("cuda")
    if not multiplies_float8(device):
        pytest.skip("the GPU does not multiply float8")
    for inputs, outputs in ((1280, 3840), (1536, 256), (8960, 1536), (48, 16)):
        for bias in (False, True):
            linear, x = random_linear(inputs, outputs, bias)
            linear, x = linear.to(device), x.to(device)
            emulated = Float8Linear(linear, hardware=False)(x)
            found = Float8Linear(linear, hardware=True)(x)
            assert torch.allclose(found.float(), emulated.float(), rtol=2**-6, atol=0.02)
