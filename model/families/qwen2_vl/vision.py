"""Qwen2-VL's vision tower, from patches of pictures and videos to visual tokens.

All media of a call are packed into one sequence; attention stays within each frame. Parameter names
below `visual.` are those of the hub checkpoints.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.layers.frame_batches import embedded_frames
from mediamill.model.layers.kernels import AttentionName, check_attention
from mediamill.model.layers.rope import Grid, grid_list, vision_rotation
from mediamill.model.layers.rope_types import inverse_frequencies
from mediamill.model.layers.shapes import VisionConfig
from mediamill.model.layers.vision import FrameAttention, PatchEmbed, VisionAttention, VisionMlp
from mediamill.model.media.image_rules import ImageRules


class VisionBlock(nn.Module):
    """Attention, then the feed-forward part, each with a norm before it and a residual sum."""

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
        attention: FrameAttention,
        in_place: bool = False,
    ) -> torch.Tensor:
        """Patches x [N, D] -> [N, D]; with `in_place`, x itself is overwritten and returned."""
        if in_place:
            x.add_(self.attn(self.norm1(x), rotation, attention, in_place))
            return x.add_(self.mlp(self.norm2(x), in_place))
        x = x + self.attn(self.norm1(x), rotation, attention)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchMerger(nn.Module):
    """Joins each merge group of patches (2 x 2 as published) into one token for the decoder."""

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
        self.config = config
        self.register_buffer("inv_freq", self._frequencies(), persistent=False)

    def _frequencies(self) -> torch.Tensor:
        return inverse_frequencies(self.config.head_dim // 2, self.config.rope_theta)

    def reset_frequencies(self, device: torch.device) -> None:
        """Computes the float32 frequencies again, after a build on "meta" or a cast lost them."""
        self.inv_freq = self._frequencies().to(device)

    def forward(
        self,
        patches: torch.Tensor,
        grids: torch.Tensor | Sequence[Grid],
        name: str = "sdpa",
    ) -> torch.Tensor:
        """Normalized patches [N, C*T*ph*pw] -> visual tokens [N / merge^2, hidden_size].

        grids: (t, h, w) in patches of each picture or video, as rows of an integer tensor or as
            tuples; N is the sum of t*h*w.
        name: of the attention, see `check_attention`.
        Raises ValueError where the patches do not match the grids.
        """
        config = self.config
        listed = grid_list(grids, config.spatial_merge_size)
        expected = (sum(t * h * w for t, h, w in listed), config.patch_dim)
        if patches.shape != expected:
            raise ValueError(
                f"the patches are {list(patches.shape)}, and the grids want {list(expected)}"
            )
        weight = self.patch_embed.proj.weight
        kernel = check_attention(name, weight.device, weight.dtype)
        return self._visual_tokens(self.patch_embed(patches), listed, kernel)

    @torch.no_grad()
    def encode(
        self,
        media: Sequence[VisualInput],
        rules: Mapping[VisualKind, ImageRules],
        name: str = "sdpa",
    ) -> torch.Tensor:
        """Returns the visual tokens of pictures and videos in their order: [tokens, hidden_size].

        For inference: gives the numbers of `forward` over normalized patches up to rounding, in
        less time and memory, and without gradients.

        media: uint8 patches, on any device.
        rules: how the patches of each kind are normalized.
        name: of the attention, see `check_attention`.
        Raises ValueError where patches do not match their grids or rules.
        """
        config, weight = self.config, self.patch_embed.proj.weight
        kernel = check_attention(name, weight.device, weight.dtype)
        widest = max(int(config.embed_dim * config.mlp_ratio), 3 * config.embed_dim)
        tokens = [weight.new_empty(0, config.hidden_size)]
        for x, grids in embedded_frames(media, rules, weight, config.spatial_merge_size, widest):
            tokens.append(self._visual_tokens(x, grids, kernel, in_place=True))
        return torch.cat(tokens)

    def _visual_tokens(
        self, x: torch.Tensor, grids: Sequence[Grid], name: AttentionName, in_place: bool = False
    ) -> torch.Tensor:
        """Embedded patches [N, embed_dim] -> visual tokens [N / merge^2, hidden_size]."""
        attention = FrameAttention(grids, name, x.device)
        rotation = vision_rotation(grids, self.inv_freq, self.config.spatial_merge_size)
        for block in self.blocks:
            x = block(x, rotation, attention, in_place)
        return self.merger(x)  # type: ignore[no-any-return]
