"""Linear layers in eight-bit floats: turns a network's linears into ones of float8 e4m3.

Every row of weights has a scale, fixed at conversion; every row of inputs gets one as it comes
(row-wise dynamic scaling). Elsewhere than on a GPU that multiplies float8, the same rounded numbers
are multiplied in float32, so that the effect on answers can be measured anywhere. It does not know
checkpoints. The format: arXiv 2209.05433.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from mediamill.model.families.qwen2_vl.model import Qwen2VL

Part = Literal["vision", "text"]

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max

# cuBLAS and CUTLASS take float8 matrices whose sides are multiples of this.
SIDE = 16


class Float8Linear(nn.Module):
    """x @ weight.T + bias with both factors rounded to float8.

    weight: float8 [out, in]; scale: float32 [out, 1], what its rows are to be multiplied by; bias:
    as it was. The result has x's dtype.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, hardware: bool) -> None:
        super().__init__()
        weight, scale = rounded(linear.weight.detach())
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.hardware = hardware
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        inputs, scale = rounded(rows)
        if self.hardware:
            # Row-wise scales give bfloat16 alone.
            out = torch._scaled_mm(
                inputs,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.scale.t(),
                bias=None if self.bias is None else self.bias.to(torch.bfloat16),
                out_dtype=torch.bfloat16,
            ).to(x.dtype)
        else:
            wide = F.linear(inputs.float(), self.weight.float()) * scale * self.scale.t()
            out = wide if self.bias is None else wide + self.bias.float()
            out = out.to(x.dtype)
        return out.view(*x.shape[:-1], self.out_features)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, k] as float8 [n, k] and float32 scales [n, 1]: x is about float8 * scale.

    The scale puts the largest of a row at the largest float8; a row of zeros has scale 1.
    """
    wide = x.float()
    scale = wide.abs().amax(dim=-1, keepdim=True) / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale


def multiplies_float8(device: torch.device) -> bool:
    """Whether the device multiplies float8 with row-wise scales: tried, on GPUs of compute
    capability 8.9 or later.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    linear = nn.Linear(32, 48, device=device, dtype=torch.bfloat16)
    x = torch.randn(16, 32, device=device, dtype=torch.bfloat16)
    try:
        with torch.no_grad():
            found, wanted = (Float8Linear(linear, way)(x) for way in (True, False))
    except (RuntimeError, AttributeError, TypeError):
        return False
    return torch.allclose(found.float(), wanted.float(), atol=0.02, rtol=0.02)


@torch.no_grad()
def convert_linears(model: Qwen2VL, parts: Iterable[Part] = ("vision", "text")) -> int:
    """Put float8 linears in place of those of the vision tower's and the decoder's layers; returns
    how many. The patch embedding, the token embedding and the head stay as they are, and so does
    a linear whose sides are no multiples of 16.

    One layer after the other, so that the weights never lie in memory twice. The network can no
    longer be trained or saved.
    """
    hardware = multiplies_float8(model.device)
    roots: dict[str, list[nn.Module]] = {
        "vision": [model.visual.blocks, model.visual.merger],
        "text": [model.model.layers],
    }
    count = 0
    for part in parts:
        for root in roots[part]:
            for parent in list(root.modules()):
                for name, child in list(parent.named_children()):
                    if type(child) is nn.Linear and not (
                        child.in_features % SIDE or child.out_features % SIDE
                    ):
                        setattr(parent, name, Float8Linear(child, hardware))
                        count += 1
    return count
