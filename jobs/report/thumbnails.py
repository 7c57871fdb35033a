"""Makes thumbnails of pictures and clips, as data URIs, with the decoders that jobs use."""

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
from mediamill.model.media.resize import resize
from mediamill.model.media.video import decode_video

PICTURE_BOX = (320, 240)  # width, height in pixels
CLIP_FRAMES = 4
FRAME_RULES = ImageRules(min_pixels=28 * 28, max_pixels=224 * 168)
JPEG_QUALITY = 78


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG of width x height pixels, as a data URI."""

    uri: str
    width: int
    height: int


def thumbnails(data: bytes, limits: MediaLimits) -> tuple[Thumbnail, ...]:
    """Returns one thumbnail of a picture, or CLIP_FRAMES of a clip, evenly spread over its time.

    Raises MediaError when the media cannot be decoded.
    """
    if detect_format(data).kind == "image":
        return (_encode(_fit(decode_image(data, limits.max_image_pixels))),)
    clip = decode_video(data, VideoRules(num_frames=CLIP_FRAMES), FRAME_RULES, limits)
    return tuple(_encode(frame) for frame in clip.frames)


def _fit(pixels: torch.Tensor) -> torch.Tensor:
    """Shrinks a picture (uint8 [3, H, W]) to fit into PICTURE_BOX."""
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
