"""The vision tower: turns normalised patches of many pictures and videos into visual tokens.

All media of a call are packed into one sequence; attention stays within each frame. It does not
know which text the tokens will stand in. Parameter names below `visual.` are those of the hub
checkpoints.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import AttentionName, packed_attention
from model.config import VisionConfig
from model.rope import Grid, inverse_frequencies, rotate, vision_rotation

THETA = 10000.0


class PatchEmbed(nn.Module):
    """A linear projection of each patch, stored as the hub does: the kernel of a 3-D
    convolution.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(
            config.in_channels, config.embed_dim, kernel, stride=kernel, bias=False
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches [N, C*T*ph*pw] -> [N, embed_dim]. Kernel equals stride, so a matrix product
        suffices.
        """
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1))


class VisionAttention(nn.Module):
    """Attention within each frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        lengths: Sequence[int],
        name: AttentionName,
    ) -> torch.Tensor:
        """Turns x [N, D], float32 rotation [N, head_dim] each, lengths of the frames -> [N, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        # The reference turns queries and keys in float32 here, unlike in the decoder.
        q, k = (rotate(t.float(), *rotation).to(v.dtype) for t in (q, k))
        return self.proj(packed_attention(q, k, v, lengths, causal=False, name=name).flatten(1))  # type: ignore[no-any-return]


class VisionMlp(nn.Module):
    """The feed-forward part of a block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        inner = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, inner)
        self.fc2 = nn.Linear(inner, config.embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        # "quick GELU", the sigmoid approximation of arXiv 1606.08415.
        return self.fc2(x * torch.sigmoid(1.702 * x))  # type: ignore[no-any-return]


class VisionBlock(nn.Module):
    """Attention, then the feed-forward part; each normalised before and added to its input."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = VisionMlp(config)

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        lengths: Sequence[int],
        name: AttentionName,
    ) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rotation, lengths, name)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchMerger(nn.Module):
    """Joins each 2x2 group of patches into one token of the decoder's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.group = config.embed_dim * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(self.group, self.group), nn.GELU(), nn.Linear(self.group, config.hidden_size)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.ln_q(x).view(-1, self.group))  # type: ignore[no-any-return]


class VisionTower(nn.Module):
    """Patch projection, blocks and merger."""

    inv_freq: torch.Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)
        self.rotated_dim = config.head_dim // 2
        self.register_buffer(
            "inv_freq", inverse_frequencies(self.rotated_dim, THETA), persistent=False
        )

    def reset_frequencies(self, device: torch.device) -> None:
        """Compute the float32 frequencies anew, after the module was built without memory or
        cast.
        """
        self.inv_freq = inverse_frequencies(self.rotated_dim, THETA).to(device)

    def forward(
        self, patches: torch.Tensor, grids: Sequence[Grid], name: AttentionName = "sdpa"
    ) -> torch.Tensor:
        """Normalised patches [N, C*T*ph*pw] of media with `grids` (N = sum t*h*w) -> [N/4,
        hidden_size].
        """
        rotation = vision_rotation(grids, self.inv_freq)
        lengths = [h * w for t, h, w in grids for _ in range(t)]
        x = self.patch_embed(patches)
        for block in self.blocks:
            x = block(x, rotation, lengths, name)
        return self.merger(x)  # type: ignore[no-any-return]
