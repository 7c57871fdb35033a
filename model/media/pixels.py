"""Turns pictures that are decoded already (Pillow's, arrays, tensors) into upright RGB pixels.

Values are taken as they are: uint8, 0 to 255. Files are those of model/media/images.py and
model/media/video.py.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mediamill.model.errors import MediaError
from mediamill.model.media.images import DecodedImage, take_picture

Picture: TypeAlias = Image.Image | npt.NDArray[np.uint8] | torch.Tensor
Frames: TypeAlias = Sequence[Picture] | npt.NDArray[np.uint8] | torch.Tensor

_COLOURS = (1, 3, 4)  # grey, RGB, RGB with transparency


def picture_pixels(
    picture: Picture, max_pixels: int | None = None, convert_rgb: bool = True
) -> DecodedImage:
    """uint8 [3, H, W] of one decoded picture.

    picture: a Pillow picture of any mode, which follows the rules of files (EXIF, transparency over
        white); an array [H, W], [H, W, C] or [C, H, W], or a tensor [H, W], [C, H, W] or [H, W, C],
        of uint8 with C = 1, 3 or 4 colours. Where both ends could be the colours, an array's are
        the last and a tensor's are the first.
    max_pixels: ceiling for height * width. convert_rgb: False refuses what is not RGB.
    Raises MediaError: media_empty, decode_unsupported, decode_too_large, decode_corrupt.
    """
    if isinstance(picture, Image.Image):
        return take_picture(picture, max_pixels, convert_rgb)
    pixels = _colours_first(picture)
    height, width = pixels.shape[1:]
    if max_pixels is not None and height * width > max_pixels:
        raise MediaError(
            "decode_too_large",
            f"the picture is {width} x {height} = {width * height} pixels; "
            f"the limit is {max_pixels}",
        )
    if len(pixels) != 3 and not convert_rgb:
        raise MediaError(
            "decode_unsupported",
            f"the picture has {len(pixels)} colours and do_convert_rgb is false; expected 3",
        )
    if len(pixels) == 4:
        return DecodedImage(_over_white(pixels), ("transparency laid over white",))
    return DecodedImage(pixels.expand(3, -1, -1).contiguous(), ())


def frame_count(frames: Frames) -> int:
    """How many frames these are. Raises MediaError media_empty or decode_unsupported."""
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


def _colours_first(picture: Any) -> torch.Tensor:
    """uint8 [C, H, W] of an array or a tensor."""
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
        code = "media_empty" if picture.ndim in (2, 3) else "decode_unsupported"
        raise MediaError(
            code,  # type: ignore[arg-type]
            f"found a picture of the shape {shape}, expected [H, W], [H, W, 3] or [3, H, W]",
        )
    if isinstance(picture, np.ndarray):
        pixels = torch.from_numpy(np.array(picture))  # a copy: memory may be read-only
        ends = (2, 0)
    else:
        pixels = picture.detach().cpu()
        ends = (0, 2)
    if pixels.ndim == 2:
        return pixels[None]
    for end in ends:
        if shape[end] in _COLOURS:
            return pixels.movedim(end, 0).contiguous()
    raise MediaError(
        "decode_unsupported",
        f"found a picture of the shape {shape}, expected 1, 3 or 4 colours at one end",
    )


def _over_white(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [4, H, W] -> [3, H, W], with the reference's rounding for arrays.

    It blends in float32, and truncates after stretching 0..1 to just below 256.
    """
    shares = pixels.to(torch.float32).mul_(1.0 / 255)
    blended = shares[:3] * shares[3:] + (1 - shares[3:])
    return blended.mul(255 + 1.0 - 1e-3).to(torch.uint8)
