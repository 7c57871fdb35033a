"""The dimensions of a network: the numbers that its layers are built from."""

from dataclasses import dataclass, field

from mediamill.model.checkpoint.rope_scaling import RopeScaling


@dataclass(frozen=True)
class VisionConfig:
    """The dimensions of a vision tower; `hidden_size` is the width of the visual tokens."""

    depth: int = 32
    embed_dim: int = 1280
    num_heads: int = 16
    mlp_ratio: float = 4.0
    in_channels: int = 3
    hidden_size: int = 3584
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    hidden_act: str = "quick_gelu"
    rope_theta: float = 10000.0
    initializer_range: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values of a patch with all its temporal slices: C * T * ph * pw."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class TextConfig:
    """The dimensions of a decoder.

    windows: the sliding window of each layer in tokens, None for full attention; empty: no layer
        has a window.
    head_size: given for one rank's part of a network, which has fewer heads; None = hidden_size /
        num_attention_heads.
    """

    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    max_position_embeddings: int = 32768
    # The class default of the reference; every published checkpoint says 1e-6.
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    tie_word_embeddings: bool = False
    rope: RopeScaling = field(default_factory=RopeScaling)
    windows: tuple[int | None, ...] = ()
    hidden_act: str = "silu"
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    head_size: int | None = None

    @property
    def head_dim(self) -> int:
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def context_length(self) -> int:
        """The longest sequence that the model supports, in tokens.

        Files with rope type linear, dynamic or yarn give the length before the scaling, and often
        repeat it as max_position_embeddings.
        """
        rope, trained = self.rope, self.max_position_embeddings
        if rope.kind not in ("linear", "dynamic", "yarn") or rope.factor is None:
            return trained
        return max(trained, int((rope.original or trained) * rope.factor))

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer: key k is visible to query q iff q - window < k <= q."""
        return self.windows[layer] if self.windows else None
