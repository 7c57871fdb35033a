"""What the model sees of one picture or video: the receipt of a medium.

Imports no torch: the process that validates the receipts of a decode worker does not load it.
"""

from dataclasses import dataclass

from mediamill.model.inputs import VisualKind
from mediamill.model.media.limit_names import LimitName


@dataclass(frozen=True)
class Receipt:
    """What the model sees of one medium.

    sha256: in hex, of the file's bytes; of a medium that came decoded, of its RGB pixels before the
        resize, uint8 [3, H, W] or [frames looked at, 3, H, W].
    height, width: pixels after the resize.
    frame_times_s: of a video's sampled frames, in seconds from its first frame; empty for a picture
        and for an unknown frame rate. frame_indices: of the same frames, counted from the first.
    visual_tokens: in the prompt.
    source_height, source_width: before the resize, upright; of a video in square pixels.
    notes: what was clamped or changed and why. bound_by: the limits that decided frames and size.
    seen_sha256: in hex, of a video's patches as the model gets them, which tells the windows of one
        file apart; None for a picture, whose file says as much.
    """

    kind: VisualKind
    sha256: str
    height: int
    width: int
    frame_times_s: tuple[float, ...]
    frame_indices: tuple[int, ...]
    visual_tokens: int
    source_height: int
    source_width: int
    notes: tuple[str, ...]
    bound_by: tuple[LimitName, ...]
    seen_sha256: str | None
