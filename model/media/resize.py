"""Chooses the size of a picture for the model, and resizes to it as the reference does.

The reference is Qwen2VLImageProcessor of transformers.
"""

import math
from typing import Literal

import torch
from torch.nn import functional

Resample = Literal["bicubic", "bilinear"]

MAX_ASPECT_RATIO = 200  # of the longer side to the shorter one


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 16384,
) -> tuple[int, int]:
    """Returns the (height, width) to which a picture is resized for the network.

    Both are multiples of `factor`, and their product lies within the limits. With round() to even:

        h, w = factor * round(height / factor), factor * round(width / factor)
        if h * w > max_pixels:  s = sqrt(height * width / max_pixels)
            h, w = factor * floor(height / s / factor), the same of width, at least factor
        if h * w < min_pixels:  s = sqrt(min_pixels / (height * width))
            h, w = factor * ceil(height * s / factor), the same of width

    Very long pictures may exceed max_pixels by a little. Source: smart_resize in
    image_processing_qwen2_vl.py of transformers.
    Raises ValueError if one side is more than 200 times the other.
    """
    if height < 1 or width < 1:
        raise ValueError(f"the picture is {width} x {height} pixels; expected at least 1 x 1")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"the picture is {width} x {height} pixels; "
            f"expected no side more than {MAX_ASPECT_RATIO} times the other"
        )
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / scale / factor) * factor)
        columns = max(factor, math.floor(width / scale / factor) * factor)
    elif rows * columns < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * scale / factor) * factor
        columns = math.ceil(width * scale / factor) * factor
    return rows, columns


def resize(
    image: torch.Tensor, height: int, width: int, resample: Resample = "bicubic"
) -> torch.Tensor:
    """uint8 [..., 3, H, W] -> uint8 [..., 3, height, width], with antialiasing.

    Only for uint8 on the CPU: torch's kernel rounds between its two passes there, as the reference
    does, while other devices and dtypes give other pixels. Raises TypeError for those.
    """
    if image.dtype != torch.uint8 or image.device.type != "cpu":
        raise TypeError(f"found {image.dtype} on {image.device}, expected torch.uint8 on cpu")
    if image.shape[-2:] == (height, width):
        return image
    # The channels-last layout is several times faster, if the batch has torch's own strides for it.
    batch = image.movedim(-3, -1).reshape(-1, *image.shape[-2:], image.shape[-3]).movedim(-1, 1)
    resized = functional.interpolate(
        batch, (height, width), mode=resample, antialias=True, align_corners=False
    )
    return resized.reshape(*image.shape[:-2], height, width)
