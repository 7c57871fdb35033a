"""The one form in which pictures and videos reach the network: uint8 patches and a grid."""

from dataclasses import dataclass
from typing import Literal

import torch

VisualKind = Literal["image", "video"]


@dataclass(frozen=True)
class VisualInput:
    """One picture or one video, resized and cut into patches.

    kind: "image" or "video".
    patches: uint8. [h*w, 3*14*14] for a picture (its two equal temporal slices are stored once),
        [t*h*w, 3*2*14*14] for a video. Patches of one 2x2 merge group are neighbours.
    grid_thw: (t, h, w) in patches; t counts pairs of frames.
    """

    kind: VisualKind
    patches: torch.Tensor
    grid_thw: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        """Visual tokens after the 2x2 merge."""
        t, h, w = self.grid_thw
        return t * h * w // 4
