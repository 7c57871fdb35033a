"""Activation functions by their name in config.json."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

Activation = Callable[[torch.Tensor], torch.Tensor]


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """The sigmoid approximation of arXiv 1606.08415."""
    return x * torch.sigmoid(1.702 * x)


def _quick_gelu_(x: torch.Tensor) -> torch.Tensor:
    return x.mul_((1.702 * x).sigmoid_())


_ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
}
_IN_PLACE: dict[str, Activation] = {
    "silu": partial(F.silu, inplace=True),
    "quick_gelu": _quick_gelu_,
}


def activation(name: str) -> Activation:
    """Returns the activation function called `name`. Raises ValueError for an unknown name."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"there is no activation {name!r}")
    return _ACTIVATIONS[name]


def activation_(name: str) -> Activation:
    """Returns a function with the results of `activation`, bit for bit, for inference.

    It overwrites its argument where that saves memory traffic.
    """
    return _IN_PLACE.get(name) or activation(name)
