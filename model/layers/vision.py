"""Layers of a vision tower: the patch projection, attention within frames, the feed-forward part.

Attention and the feed-forward part have an in-place form for inference, which saves memory traffic:
it overwrites their intermediate results, and no gradient can flow through it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mediamill.model.layers.activations import activation, activation_
from mediamill.model.layers.flash import HALF, Boundaries
from mediamill.model.layers.kernels import AttentionName, packed_attention
from mediamill.model.layers.rope import Grid, rotate, rotate_
from mediamill.model.layers.shapes import VisionConfig


class PatchEmbed(nn.Module):
    """A linear projection of patches; hub files store it as the kernel of a 3-D convolution."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(
            config.in_channels, config.embed_dim, kernel, stride=kernel, bias=False
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches [N, C*T*ph*pw] -> [N, embed_dim].

        The stride equals the kernel size, so a matrix product gives the same result as the
        convolution and is about four times as fast. In half precision on a CPU the two round
        differently; there the convolution is used, which rounds as the reference does.
        """
        weight = self.proj.weight
        patches = patches.to(weight.dtype)
        if weight.device.type == "cpu" and weight.dtype in HALF:
            cubes = patches.reshape(-1, *weight.shape[1:])
            return self.proj(cubes).flatten(1)  # type: ignore[no-any-return]
        return F.linear(patches, weight.flatten(1))


class FrameAttention:
    """Attention within each frame of some grids, by the kernel `name`.

    Calling it takes q, k, v [N, heads, head_dim] of all frames' patches -> [N, heads, head_dim].
    """

    def __init__(self, grids: Sequence[Grid], name: AttentionName, device: torch.device) -> None:
        self.lengths = [h * w for t, h, w in grids for _ in range(t)]
        self.name: AttentionName = name
        self.boundaries = Boundaries(self.lengths, device) if name == "flash" else None

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return packed_attention(
            q, k, v, self.lengths, causal=False, name=self.name, boundaries=self.boundaries
        )


class VisionAttention(nn.Module):
    """Multi-head attention with rotary positions, within each frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        attention: FrameAttention,
        in_place: bool = False,
    ) -> torch.Tensor:
        """Patches x [N, D], cosine and sine, float32 [N, head_dim] each -> [N, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        # The reference rotates queries and keys in float32 here, unlike in the decoder.
        qk = qkv[:, :2].flatten(1, 2).float()
        qk = rotate_(qk, *rotation) if in_place else rotate(qk, *rotation)
        q, k = qk.to(x.dtype).chunk(2, dim=1)
        return self.proj(attention(q, k, qkv[:, 2]).flatten(1))  # type: ignore[no-any-return]


class VisionMlp(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        inner = int(config.embed_dim * config.mlp_ratio)
        self.act = activation(config.hidden_act)
        self.act_ = activation_(config.hidden_act)
        self.fc1 = nn.Linear(config.embed_dim, inner)
        self.fc2 = nn.Linear(inner, config.embed_dim)

    def forward(self, x: torch.Tensor, in_place: bool = False) -> torch.Tensor:
        act = self.act_ if in_place else self.act
        return self.fc2(act(self.fc1(x)))  # type: ignore[no-any-return]
