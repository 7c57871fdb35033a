"""Activation functions by their name in config.json."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns the activation function called `name`. Raises ValueError for an unknown name."""
    match name:
        case "silu":
            return F.silu
        case "gelu":
            return F.gelu
        case "gelu_pytorch_tanh":
            return _gelu_tanh
        case "quick_gelu":
            return _quick_gelu
        case "relu":
            return F.relu
    raise ValueError(f"there is no activation {name!r}")


def activation_(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function with the results of `activation`, bit for bit, for inference.

    It overwrites its argument where that saves memory traffic.
    """
    match name:
        case "silu":
            return _silu_
        case "quick_gelu":
            return _quick_gelu_
    return activation(name)


def _silu_(x: torch.Tensor) -> torch.Tensor:
    return F.silu(x, inplace=True)


def _quick_gelu_(x: torch.Tensor) -> torch.Tensor:
    return x.mul_((1.702 * x).sigmoid_())


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """The sigmoid approximation of arXiv 1606.08415."""
    return x * torch.sigmoid(1.702 * x)
