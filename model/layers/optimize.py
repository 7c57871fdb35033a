"""Rewrites the linear layers of a network for inference: fused projections, prepacked weights."""

from typing import TypeVar

from torch import nn

from mediamill.model.layers.decoder import Attention
from mediamill.model.layers.linear import PrepackedLinear, can_prepack
from mediamill.model.layers.mlps import SwiGLU

Network = TypeVar("Network", bound=nn.Module)


def optimize_for_inference(model: Network) -> Network:
    """Changes a loaded network in place and returns it; then it cannot be trained, moved or cast.

    Projections of one input become one product, and on a CPU weights are stored in the layout of
    oneDNN's kernels. Results stay the same up to rounding. Weights are replaced a layer at a time,
    so memory does not double. The embedding table stays as it is: a head that is tied to it is
    packed as a copy.
    """
    weight = next(model.parameters())
    for module in model.modules():
        if isinstance(module, Attention | SwiGLU):
            module.fuse()
    if can_prepack(weight.device, weight.dtype):
        _pack(model)
    return model


def _pack(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, PrepackedLinear(child))
        else:
            _pack(child)
