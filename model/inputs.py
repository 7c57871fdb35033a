"""The form in which pictures and videos enter the network: uint8 patches and a grid."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # processes that never see patches as tensors read the kinds
    import torch

VisualKind = Literal["image", "video"]


@dataclass(frozen=True)
class VisualInput:
    """One picture or one video, resized and cut into patches.

    kind: "image" or "video".
    patches: uint8, [h*w, 3*p*p] for a picture (its equal temporal slices are stored once) and
        [t*h*w, 3*T*p*p] for a video, where p = patch size and T = temporal patch size. The patches
        of one merge group follow each other.
    grid_thw: (t, h, w) in patches; t counts groups of T frames.
    merge_size: merge_size x merge_size patches become one visual token.
    """

    kind: VisualKind
    patches: "torch.Tensor"
    grid_thw: tuple[int, int, int]
    merge_size: int = 2

    @property
    def tokens(self) -> int:
        """Number of visual tokens: t * h * w / merge_size ** 2."""
        t, h, w = self.grid_thw
        return t * h * w // self.merge_size**2
