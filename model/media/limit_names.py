"""Names the limits that may decide what the model sees of a medium.

Which of them did is found out elsewhere.
"""

from typing import Literal, get_args

# window: it was cut to the video, or lies within one frame. num_frames, min_frames, max_frames:
# they decided how many frames. frames: there are no more. min_pixels, max_pixels: of a picture or a
# frame. max_video_tokens: by cap_pixels_per_frame. total_pixels, max_tokens: of a video. context:
# the model takes no more visual tokens.
LimitName = Literal[
    "window", "num_frames", "min_frames", "max_frames", "frames", "min_pixels", "max_pixels",
    "max_video_tokens", "total_pixels", "max_tokens", "context",
]  # fmt: skip
BOUNDS: tuple[LimitName, ...] = get_args(LimitName)


def in_order(*bounds: LimitName) -> tuple[LimitName, ...]:
    """Each once, in the order of the list above."""
    return tuple(bound for bound in BOUNDS if bound in bounds)
