"""Makes thumbnails of pictures and clips, as data URIs, decoded in confined decode workers."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mediamill.pipeline.decoding.decoder_pool import DecodeRequest, DecoderPool, MediumRequest
from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.job import Limits

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from mediamill.model.inputs import VisualInput, VisualKind
    from mediamill.model.media.image_rules import ImageRules
    from mediamill.model.media.limits import MediaLimits
    from mediamill.model.media.receipt import Receipt

PICTURE_BOX = (320, 240)  # width, height in pixels
CLIP_FRAMES = 4
CLIP_PIXELS = 224 * 168  # of a frame
JPEG_QUALITY = 78
TIMEOUT_S = 60.0  # to decode one medium


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG of width x height pixels, as a data URI."""

    uri: str
    width: int
    height: int


class ThumbnailMaker:
    """Decodes media in a worker process, which is started with the first one."""

    def __init__(self) -> None:
        self._pool: DecoderPool | None = None

    def thumbnails(self, data: bytes) -> tuple[Thumbnail, ...]:
        """Returns one thumbnail of a picture, or CLIP_FRAMES of a clip, evenly spread over its
        time.

        Raises RowError when the media cannot be decoded.
        """
        if self._pool is None:
            factory, limits = f"{__name__}:load_shrinker", Limits(decode_timeout_s=TIMEOUT_S)
            self._pool = DecoderPool({}, limits, factory, workers=1)
        (reply,) = self._pool.prepare([DecodeRequest([MediumRequest(memoryview(data))])])
        if reply.failure is not None:
            raise RowError(ErrorCode(reply.failure.code), reply.failure.message)
        pixels = np.frombuffer(reply.patches, np.uint8).reshape(*reply.visuals[0].grid_thw, 3)
        return tuple(_encode(frame) for frame in pixels)

    def close(self) -> None:
        """Ends the worker process."""
        if self._pool is not None:
            self._pool.close()


def load_shrinker(limits: Mapping[str, Any]) -> "Shrinker":
    """The factory for a DecoderPool. limits: arguments of MediaLimits."""
    from mediamill.model.media.image_rules import ImageRules
    from mediamill.model.media.limits import MediaLimits
    from mediamill.pipeline.decoding.decode_worker import decode_in_one_thread

    decode_in_one_thread()
    pixels = ImageRules(1, 2**62, patch_size=1, temporal_patch_size=1, merge_size=1)
    return Shrinker(MediaLimits(**limits), {"image": pixels, "video": pixels})


@dataclass(frozen=True)
class Shrinker:
    """In place of a Processor in the decode workers: a patch is a pixel of a small picture.

    rules: those of a Processor, for patches of 1 x 1 pixels.
    """

    limits: "MediaLimits"
    rules: "Mapping[VisualKind, ImageRules]" = field(default_factory=dict)

    def prepare_media(
        self,
        data: "bytes | Path",
        kind: "VisualKind | None" = None,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> "tuple[VisualInput, Receipt]":
        """Returns the pixels as patches [frames * H * W, 3]. Raises MediaError."""
        from mediamill.model.inputs import VisualInput
        from mediamill.model.media.containers import detect_format
        from mediamill.model.media.frame_sampling import VideoRules
        from mediamill.model.media.image_rules import ImageRules
        from mediamill.model.media.images import read_image
        from mediamill.model.media.receipt import Receipt
        from mediamill.model.media.video import decode_video

        kind = kind or detect_format(data).kind
        if kind == "image":
            frames = _fit(read_image(data, self.limits).pixels)[None]
        else:
            sizes = ImageRules(min_pixels=28 * 28, max_pixels=CLIP_PIXELS)
            video_rules = VideoRules(num_frames=CLIP_FRAMES)
            frames = decode_video(data, video_rules, sizes, self.limits, start_s, end_s).frames
        count, _, height, width = frames.shape
        patches = frames.permute(0, 2, 3, 1).reshape(-1, 3)
        size, tokens = (height, width), count * height * width
        receipt = Receipt(kind, "0" * 64, *size, (), (), tokens, *size, (), (), None)
        return VisualInput(kind, patches, (count, *size), 1), receipt


def _fit(pixels: "torch.Tensor") -> "torch.Tensor":
    """Shrinks a picture (uint8 [3, H, W]) to fit into PICTURE_BOX."""
    from mediamill.model.media.resize import resize

    height, width = pixels.shape[1:]
    scale = min(1.0, PICTURE_BOX[0] / width, PICTURE_BOX[1] / height)
    return resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))


def _encode(pixels: "np.ndarray[Any, np.dtype[np.uint8]]") -> Thumbnail:
    """pixels: uint8 [H, W, 3]."""
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    picture.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", picture.width, picture.height)
