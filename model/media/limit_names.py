"""The names of the limits that can decide what the model sees of a medium.

The receipt of a medium lists those that did, in the column `bound_by`.
"""

from typing import Literal, get_args

# window: it was cut to the video, or it lies within one frame.
# num_frames, min_frames, max_frames: they decided the number of frames.
# frames: the video has no more frames.
# min_pixels, max_pixels: of a picture or a frame.
# max_video_tokens: by cap_pixels_per_frame.
# total_pixels, max_tokens: of all frames of a video.
# context: the model takes no more visual tokens.
LimitName = Literal[
    "window", "num_frames", "min_frames", "max_frames", "frames", "min_pixels", "max_pixels",
    "max_video_tokens", "total_pixels", "max_tokens", "context",
]  # fmt: skip
LIMIT_NAMES: tuple[LimitName, ...] = get_args(LimitName)


def ordered(*names: LimitName) -> tuple[LimitName, ...]:
    """Returns the names without duplicates, in the order of LIMIT_NAMES."""
    return tuple(name for name in LIMIT_NAMES if name in names)
