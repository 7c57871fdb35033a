"""Turns the bytes of a picture or a clip into small JPEGs as data URIs.

Knows nothing of rows or pages. Media are decoded by the same code as in a job.
"""

import base64
import io
from dataclasses import dataclass

import torch
from PIL import Image

from mediamill.model.media.containers import detect_format
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.images import decode_image
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.patches import resize
from mediamill.model.media.video import decode_video

PICTURE_BOX = (320, 240)  # width, height in pixels
CLIP_FRAMES = 4
FRAME_RULES = ImageRules(min_pixels=28 * 28, max_pixels=224 * 168)
JPEG_QUALITY = 78


@dataclass(frozen=True)
class Thumbnail:
    """uri: a data URI of a JPEG of width x height pixels."""

    uri: str
    width: int
    height: int


def thumbnails(data: bytes, limits: MediaLimits) -> tuple[Thumbnail, ...]:
    """One thumbnail of a picture, CLIP_FRAMES of a clip, evenly spread over its time.

    Raises MediaError as the decoders do.
    """
    if detect_format(data).kind == "image":
        return (_encode(_fit(decode_image(data, limits.max_image_pixels))),)
    clip = decode_video(data, VideoRules(num_frames=CLIP_FRAMES), FRAME_RULES, limits)
    return tuple(_encode(frame) for frame in clip.frames)


def _fit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [3, H, W], made small enough for PICTURE_BOX; never enlarged."""
    height, width = pixels.shape[1:]
    scale = min(1.0, PICTURE_BOX[0] / width, PICTURE_BOX[1] / height)
    return resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))


def _encode(pixels: torch.Tensor) -> Thumbnail:
    """pixels: uint8 [3, H, W]."""
    file = io.BytesIO()
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", picture.width, picture.height)
