"""Feed-forward layers of the decoder."""

import torch
from torch import nn

from mediamill.model.layers.activations import activation, activation_
from mediamill.model.layers.collectives import Collectives
from mediamill.model.layers.linear import MergedLinear
from mediamill.model.layers.shapes import TextConfig


class SwiGLU(nn.Module):
    """down(act(gate(x)) * up(x)) (arXiv 2002.05202); act is silu in every published checkpoint.

    config: of this rank's part of the network.
    collectives: of the ranks that have the rest of the inner width.
    """

    def __init__(self, config: TextConfig, collectives: Collectives) -> None:
        super().__init__()
        self.collectives = collectives
        self.act = activation(config.hidden_act)
        self.act_ = activation_(config.hidden_act)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.gate_up: MergedLinear | None = None

    def fuse(self) -> None:
        """Makes the two projections of the input one product, for inference."""
        self.gate_up = MergedLinear([self.gate_proj, self.up_proj])
        del self.gate_proj, self.up_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_up is not None:
            gate, up = self.gate_up(x)
            inner = self.act_(gate) * up
        else:
            inner = self.act(self.gate_proj(x)) * self.up_proj(x)
        return self.collectives.all_reduce_(self.down_proj(inner))
