"""Converts decoded pictures (Pillow pictures, arrays, tensors) to upright RGB pixels.

Arrays and tensors have to be uint8, 0 to 255, and are not rescaled.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mediamill.model.errors import MediaError
from mediamill.model.media.images import DecodedImage, read_open_picture
from mediamill.model.media.limits import check_size

Picture: TypeAlias = Image.Image | npt.NDArray[np.uint8] | torch.Tensor
Frames: TypeAlias = Sequence[Picture] | npt.NDArray[np.uint8] | torch.Tensor

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def picture_pixels(
    picture: Picture, max_pixels: int | None = None, convert_rgb: bool = True
) -> DecodedImage:
    """Returns uint8 [3, H, W] of one decoded picture.

    picture: a Pillow picture of any mode, which is treated as a file is (EXIF orientation,
        transparency over white); or a uint8 array or tensor [H, W], [H, W, C] or [C, H, W] with
        C = 1, 3 or 4 channels. If both the first and the last dimension could be the channels, an
        array has them last and a tensor has them first.
    max_pixels: limit on height * width. convert_rgb: False refuses pictures that are not RGB.
    Raises MediaError: media_empty, decode_unsupported, decode_too_large, decode_corrupt.
    """
    if isinstance(picture, Image.Image):
        return read_open_picture(picture, max_pixels, convert_rgb)
    pixels = _channels_first(picture)
    height, width = pixels.shape[1:]
    if max_pixels is not None:
        check_size("the picture", width, height, max_pixels)
    if len(pixels) != 3 and not convert_rgb:
        raise MediaError(
            "decode_unsupported",
            f"the picture has {len(pixels)} colours and do_convert_rgb is false; expected 3",
        )
    if len(pixels) == 4:
        return DecodedImage(_over_white(pixels), ("transparency laid over white",))
    return DecodedImage(pixels.expand(3, -1, -1).contiguous(), ())


def frame_count(frames: Frames) -> int:
    """Returns the number of frames. Raises MediaError media_empty or decode_unsupported."""
    if isinstance(frames, Image.Image):
        raise MediaError("decode_unsupported", "found one picture, expected a list of frames")
    if isinstance(frames, (np.ndarray, torch.Tensor)) and frames.ndim != 4:
        raise MediaError(
            "decode_unsupported",
            f"found frames of the shape {list(frames.shape)}, expected [T, H, W, 3] or "
            "[T, 3, H, W]",
        )
    if not len(frames):
        raise MediaError("media_empty", "the video has no frames")
    return len(frames)


def _channels_first(picture: Any) -> torch.Tensor:
    """Returns uint8 [C, H, W] of an array or a tensor."""
    if not isinstance(picture, (np.ndarray, torch.Tensor)):
        raise MediaError(
            "decode_unsupported",
            f"found a {type(picture).__name__}, expected a Pillow picture, an array or a tensor",
        )
    shape = list(picture.shape)
    if picture.dtype not in (np.uint8, torch.uint8):
        raise MediaError(
            "decode_unsupported",
            f"found pixels of {picture.dtype}, expected uint8 with values from 0 to 255",
        )
    if picture.ndim not in (2, 3) or 0 in shape:
        raise MediaError(
            "media_empty" if picture.ndim in (2, 3) else "decode_unsupported",
            f"found a picture of the shape {shape}, expected [H, W], [H, W, 3] or [3, H, W]",
        )
    if isinstance(picture, np.ndarray):
        pixels = torch.from_numpy(np.array(picture))  # a copy, because the memory may be read-only
        channel_axes = (2, 0)
    else:
        pixels = picture.detach().cpu()
        channel_axes = (0, 2)
    if pixels.ndim == 2:
        return pixels[None]
    for axis in channel_axes:
        if shape[axis] in _CHANNELS:
            return pixels.movedim(axis, 0).contiguous()
    raise MediaError(
        "decode_unsupported",
        f"found a picture of the shape {shape}, expected 1, 3 or 4 colours at one end",
    )


def _over_white(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [4, H, W] -> [3, H, W], blended over white with the reference's rounding for arrays.

    With colour c and opacity a in 0..1: floor((c * a + 1 - a) * 255.999) in float32. The factor is
    that of torchvision's conversion from float to uint8 (transforms.v2.functional.to_dtype).
    """
    scaled = pixels.to(torch.float32).mul_(1.0 / 255)
    colour, opacity = scaled[:3], scaled[3:]
    blended = colour * opacity + (1 - opacity)
    return blended.mul(255 + 1.0 - 1e-3).to(torch.uint8)
