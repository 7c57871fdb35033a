"""Turns the bytes of one picture or video into patches and a receipt of what they show.

Knows pixels, frames and ceilings; prompts and token ids are none of its business.
"""

import hashlib
from dataclasses import dataclass

from model.errors import MediaError, PromptError
from model.frame_sampling import VideoRules
from model.image_rules import ImageRules
from model.images import read_image
from model.inputs import VisualInput, VisualKind
from model.limits import MediaLimits
from model.patches import patchify_image, patchify_video, resize, resize_note, smart_resize
from model.video import decode_video


@dataclass(frozen=True)
class Receipt:
    """What the model really sees of one medium.

    sha256: of the bytes, in hex. height, width: pixels after the resize. frame_times_s,
    frame_indices: of a video's sampled frames, in seconds from its first frame and counted over
    all its frames; empty for a picture. visual_tokens: in the prompt. source_height, source_width:
    upright pixels before the resize. notes: what was clamped or changed and why, in words.
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


def prepare_picture(
    data: bytes, rules: ImageRules, limits: MediaLimits
) -> tuple[VisualInput, Receipt]:
    """The patches of one picture file. Raises as `read_image`, and PromptError context_too_long."""
    image = read_image(data, limits.max_image_pixels)
    source = (image.pixels.shape[1], image.pixels.shape[2])
    try:
        size = smart_resize(*source, rules.factor, rules.min_pixels, rules.max_pixels)
    except ValueError as error:
        raise MediaError("decode_unsupported", str(error)) from error
    tokens = size[0] // rules.factor * (size[1] // rules.factor)
    if limits.max_visual_tokens is not None and tokens > limits.max_visual_tokens:
        raise PromptError(
            "context_too_long",
            f"the picture of {size[1]} x {size[0]} pixels is {tokens} visual tokens; the model "
            f"takes {limits.max_visual_tokens}: lower max_pixels",
        )
    grid = (1, size[0] // rules.patch_size, size[1] // rules.patch_size)
    visual = VisualInput("image", patchify_image(resize(image.pixels, *size)), grid)
    note = resize_note(source, size, rules)
    receipt = Receipt(
        kind="image",
        sha256=hashlib.sha256(data).hexdigest(),
        height=size[0],
        width=size[1],
        frame_times_s=(),
        frame_indices=(),
        visual_tokens=visual.tokens,
        source_height=source[0],
        source_width=source[1],
        notes=image.notes + ((note,) if note else ()),
    )
    return visual, receipt


def prepare_video(
    data: bytes,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits,
    start_s: float | None = None,
    end_s: float | None = None,
) -> tuple[VisualInput, Receipt]:
    """The patches of one video file, or of a window of it. Raises as `decode_video`."""
    video = decode_video(data, rules, pixels, limits, start_s, end_s)
    count, _, height, width = video.frames.shape
    grid = ((count + 1) // 2, height // pixels.patch_size, width // pixels.patch_size)
    visual = VisualInput("video", patchify_video(video.frames), grid)
    repeated = ("last frame repeated to make a pair",) if count % 2 else ()
    receipt = Receipt(
        kind="video",
        sha256=hashlib.sha256(data).hexdigest(),
        height=height,
        width=width,
        frame_times_s=video.times_s,
        frame_indices=video.indices,
        visual_tokens=visual.tokens,
        source_height=video.source_height,
        source_width=video.source_width,
        notes=video.notes + repeated,
    )
    return visual, receipt
