"""The one form in which pictures and videos reach the network: uint8 patches and a grid."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # processes that never see patches as tensors read the kinds
    import torch

VisualKind = Literal["image", "video"]


@dataclass(frozen=True)
class VisualInput:
    """One picture or one video, resized and cut into patches.

    kind: "image" or "video".
    patches: uint8. [h*w, 3*p*p] for a picture (its equal temporal slices are stored once),
        [t*h*w, 3*T*p*p] for a video; p = patch size, T = temporal patch size. Patches of one merge
        group are neighbours.
    grid_thw: (t, h, w) in patches; t counts groups of T frames.
    merge_size: merge_size x merge_size patches become one visual token.
    """

    kind: VisualKind
    patches: "torch.Tensor"
    grid_thw: tuple[int, int, int]
    merge_size: int = 2

    @property
    def tokens(self) -> int:
        """Visual tokens after the merge."""
        t, h, w = self.grid_thw
        return t * h * w // self.merge_size**2
