"""The vision tower: turns normalised patches of many pictures and videos into visual tokens.

All media of a call are packed into one sequence; attention stays within each frame. It does not
know which text the tokens will stand in. Parameter names below `visual.` are those of the hub
checkpoints.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mediamill.model.families.qwen2_vl.config import VisionConfig
from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.layers.activations import activation, activation_
from mediamill.model.layers.attention import AttentionName, check_attention, packed_attention
from mediamill.model.layers.collectives import SINGLE_RANK, Collectives
from mediamill.model.layers.flash import HALF, Boundaries
from mediamill.model.layers.rope import Grid, grid_list, rotate, vision_rotation
from mediamill.model.layers.rope_types import inverse_frequencies
from mediamill.model.layers.vision_encoder import encode
from mediamill.model.media.image_rules import ImageRules


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
        """Patches [N, C*T*ph*pw] -> [N, embed_dim].

        Kernel equals stride, so a matrix product suffices, and is some four times as fast as the
        convolution. In half precision on a CPU the convolution is taken, though: the two round
        sums on the edge differently, and so the whole network rounds as the reference does.
        """
        weight = self.proj.weight
        patches = patches.to(weight.dtype)
        if weight.device.type == "cpu" and weight.dtype in HALF:
            cubes = patches.reshape(-1, *weight.shape[1:])
            return self.proj(cubes).flatten(1)  # type: ignore[no-any-return]
        return F.linear(patches, weight.flatten(1))


class Frames:
    """How one call's patches fall into frames, for attention under a name."""

    def __init__(self, grids: Sequence[Grid], name: AttentionName, device: torch.device) -> None:
        self.lengths = [h * w for t, h, w in grids for _ in range(t)]
        self.name: AttentionName = name
        self.boundaries = Boundaries(self.lengths, device) if name == "flash" else None


class VisionAttention(nn.Module):
    """Attention within each frame. parts: how many ranks share its heads."""

    def __init__(
        self, config: VisionConfig, parts: int = 1, ranks: Collectives = SINGLE_RANK
    ) -> None:
        super().__init__()
        self.ranks = ranks if parts > 1 else SINGLE_RANK
        self.num_heads = config.num_heads // parts
        width = config.embed_dim // parts
        self.qkv = nn.Linear(config.embed_dim, 3 * width)
        self.proj = nn.Linear(width, config.embed_dim)

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        frames: Frames,
    ) -> torch.Tensor:
        """Turns x [N, D], float32 rotation [N, head_dim] each, the frames' lengths -> [N, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        # The reference turns queries and keys in float32 here, unlike in the decoder.
        q, k = (rotate(t.float(), *rotation).to(v.dtype) for t in (q, k))
        out = packed_attention(
            q,
            k,
            v,
            frames.lengths,
            causal=False,
            name=frames.name,
            boundaries=frames.boundaries,
        )
        return self.projected(out)

    def projected(self, out: torch.Tensor) -> torch.Tensor:
        """Attention's result [N, heads, head_dim] -> [N, D], of all ranks' heads."""
        return self.ranks.sum_(self.proj(out.flatten(1)))


class VisionMlp(nn.Module):
    """The feed-forward part of a block. parts: how many ranks share its inner width."""

    def __init__(
        self, config: VisionConfig, parts: int = 1, ranks: Collectives = SINGLE_RANK
    ) -> None:
        super().__init__()
        self.ranks = ranks if parts > 1 else SINGLE_RANK
        inner = int(config.embed_dim * config.mlp_ratio) // parts
        self.act = activation(config.hidden_act)
        self.act_ = activation_(config.hidden_act)
        self.fc1 = nn.Linear(config.embed_dim, inner)
        self.fc2 = nn.Linear(inner, config.embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ranks.sum_(self.fc2(self.act(self.fc1(x))))


class VisionBlock(nn.Module):
    """Attention, then the feed-forward part; each normalised before and added to its input."""

    def __init__(
        self, config: VisionConfig, parts: int = 1, ranks: Collectives = SINGLE_RANK
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = VisionAttention(config, parts, ranks)
        self.mlp = VisionMlp(config, parts, ranks)

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        frames: Frames,
    ) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rotation, frames)
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
    """Patch projection, blocks and merger.

    parts: into how many parts the blocks are split, of which `ranks` have one each. With one part
        each rank has all, and encodes whatever media it is given.
    """

    inv_freq: torch.Tensor

    def __init__(
        self, config: VisionConfig, parts: int = 1, ranks: Collectives = SINGLE_RANK
    ) -> None:
        super().__init__()
        self.parts = parts
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config, parts, ranks) for _ in range(config.depth))
        self.merger = PatchMerger(config)
        self.config = config
        self.register_buffer("inv_freq", self._frequencies(), persistent=False)

    def _frequencies(self) -> torch.Tensor:
        return inverse_frequencies(self.config.head_dim // 2, self.config.rope_theta)

    def reset_frequencies(self, device: torch.device) -> None:
        """Compute the float32 frequencies anew, after the module was built without memory or
        cast.
        """
        self.inv_freq = self._frequencies().to(device)

    def forward(
        self,
        patches: torch.Tensor,
        grids: torch.Tensor | Sequence[Grid],
        name: str = "sdpa",
    ) -> torch.Tensor:
        """Visual tokens [N / merge^2, hidden_size] of normalised patches [N, C*T*ph*pw].

        grids: (t, h, w) in patches of each picture or video, as rows of an integer tensor or
            tuples; N is the sum of t*h*w.
        name: of the attention, see `check_attention`.
        Raises ValueError where the patches do not match the grids.
        """
        config = self.config
        listed = grid_list(grids, config.spatial_merge_size)
        wanted = sum(t * h * w for t, h, w in listed)
        if patches.ndim != 2 or patches.shape != (wanted, config.patch_dim):
            raise ValueError(
                f"the patches are {list(patches.shape)}, and the grids want "
                f"{[wanted, config.patch_dim]}"
            )
        weight = self.patch_embed.proj.weight
        frames = Frames(listed, check_attention(name, weight.device, weight.dtype), weight.device)
        rotation = vision_rotation(listed, self.inv_freq, config.spatial_merge_size)
        x = self.patch_embed(patches)
        for block in self.blocks:
            x = block(x, rotation, frames)
        return self.merger(x)  # type: ignore[no-any-return]

    def encode(
        self,
        media: Sequence[VisualInput],
        rules: Mapping[VisualKind, ImageRules],
        name: str = "sdpa",
    ) -> torch.Tensor:
        """Visual tokens of pictures and videos, mixed, in their order: [tokens, hidden_size].

        For inference: the numbers are those of `forward` over normalised patches up to rounding,
        and no gradient flows. media: uint8 patches, on any device. rules: how the patches of each
        kind become numbers. name: of the attention, see `check_attention`.
        Raises ValueError where patches do not match their grids or rules.
        """
        return encode(self, media, rules, name)
