"""Linear layers whose weights lie as oneDNN wants them, for inference on a CPU.

Turns a linear layer into one that does not rearrange its weights at every call: with few rows that
costs more than the product itself. It does not know what the layers are for.
"""

import torch
from torch import nn


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have oneDNN's products of `dtype`."""
    ops = torch.ops.mkldnn
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not (hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class PackedLinear(nn.Module):
    """x W^T + b for x [..., in] of the weight's dtype; the weight is an opaque copy. Not for
    training, for moving or for casting. In bfloat16 bit for bit what the plain layer gives.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():
            return x.new_zeros(*x.shape[:-1], self.out_features)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.contiguous(), self.packed, self.bias, "none", [], ""
        )
        return result


class SplitLinear(nn.Module):
    """Several linear layers of one input as one product; the parts are views of its result."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [one.out_features for one in linears]
        weight = torch.cat([one.weight.detach() for one in linears])
        biases = [one.bias for one in linears]
        joined = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
        joined.weight = nn.Parameter(weight, requires_grad=False)
        if biases[0] is not None:
            joined.bias = nn.Parameter(torch.cat([b.detach() for b in biases]), False)
        self.linear: nn.Module = joined

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The layers' results [..., out] each, of x [..., in]."""
        return self.linear(x).split(self.sizes, dim=-1)  # type: ignore[no-any-return]
