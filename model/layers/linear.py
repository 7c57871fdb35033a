"""Linear layers for inference: prepacked for oneDNN, or several merged into one product."""

import torch
from torch import nn


def can_prepack(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether this torch and this processor have oneDNN's matrix products of `dtype`."""
    ops = torch.ops.mkldnn
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not (hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class PrepackedLinear(nn.Module):
    """A linear layer whose weight is stored in oneDNN's layout.

    The plain layer rearranges its weight at every call, which with few rows costs more than the
    product itself. x [..., in] has the weight's dtype; in bfloat16 the results have the bits of the
    plain layer's. The weight is an opaque copy: it cannot be trained, moved or cast.
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


class MergedLinear(nn.Module):
    """Several linear layers of one input as one product. All of them have a bias, or none has."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        weight = torch.cat([linear.weight.detach() for linear in linears])
        merged = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
        merged.weight = nn.Parameter(weight, requires_grad=False)
        if linears[0].bias is not None:
            bias = torch.cat([linear.bias.detach() for linear in linears])
            merged.bias = nn.Parameter(bias, requires_grad=False)
        self.linear: nn.Module = merged

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs x [..., in] -> the layers' results [..., out], as views of one tensor."""
        return self.linear(x).split(self.sizes, dim=-1)  # type: ignore[no-any-return]
