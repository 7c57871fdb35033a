"""Holds a checkpoint's settings for the scaling of rotary position embeddings.

The frequencies are computed in model/layers/rope_types.py, so that a configuration can be read
without torch.
"""

from dataclasses import dataclass
from typing import Literal

RopeType = Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of rotary positions are scaled.

    kind: the rope type.
    factor: the extended context / the original one; for yarn and longrope None means
        max_position_embeddings / original.
    original: tokens of context before the extension (original_max_position_embeddings).
    attention_factor: multiplies cosine and sine; None = the rule of the rope type.
    beta_fast, beta_slow, mscale, mscale_all_dim, truncate: of yarn.
    low_freq_factor, high_freq_factor: of llama3.
    short_factor, long_factor: of longrope, one divisor per frequency.
    """

    kind: RopeType = "default"
    factor: float | None = None
    original: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def follows_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence."""
        return self.kind in ("dynamic", "longrope")
