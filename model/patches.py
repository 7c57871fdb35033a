"""Turns pixels into uint8 patches, and uint8 patches into the reference's numbers.

Shapes: C = 3 colours, gh and gw = rows and columns of patches; patches of one 2x2 merge group are
neighbours: the order is (rows, columns) of merge groups, then (rows, columns) within the group.
"""

import math

import torch
from torch.nn import functional

from model.image_rules import ImageRules


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 16384,
) -> tuple[int, int]:
    """(height, width) in pixels for the network: multiples of `factor`, area within the limits.

    Exactly the reference's arithmetic, with its half-even rounding; very long pictures may leave
    the limits by a little. Raises ValueError if one side is more than 200 times the other.
    """
    if max(height, width) / min(height, width) > 200:
        raise ValueError(
            f"the picture is {width} x {height} pixels; "
            "expected no side more than 200 times the other"
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


def resize_note(source: tuple[int, int], size: tuple[int, int], rules: ImageRules) -> str | None:
    """Which limit decided a resize from source to size (height, width), in words; or None."""
    area = round(source[0] / rules.factor) * round(source[1] / rules.factor) * rules.factor**2
    if rules.min_pixels <= area <= rules.max_pixels:
        return None
    limit = f"max_pixels {rules.max_pixels}"
    if area < rules.min_pixels:
        limit = f"min_pixels {rules.min_pixels}"
    return f"resized from {source[0]} x {source[1]} to {size[0]} x {size[1]} by {limit}"


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 [..., 3, H, W] -> uint8 [..., 3, height, width], bicubic with antialiasing.

    Always uint8 on the CPU: that rounds between its two passes, as the reference does; other
    devices and dtypes give other pixels.
    """
    if image.dtype != torch.uint8 or image.device.type != "cpu":
        raise TypeError(f"found {image.dtype} on {image.device}, expected torch.uint8 on cpu")
    if image.shape[-2:] == (height, width):
        return image
    batch = image.reshape(-1, *image.shape[-3:])
    resized = functional.interpolate(
        batch, (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.reshape(*image.shape[:-2], height, width)


def patchify_image(image: torch.Tensor, patch: int = 14, merge: int = 2) -> torch.Tensor:
    """uint8 [3, H, W] -> uint8 [gh * gw, 3 * patch * patch], inner order (C, row, column).

    The temporal slices of a picture are equal: one is kept. H and W are multiples of patch * merge.
    """
    colours, height, width = image.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    blocks = image.reshape(colours, rows, merge, patch, columns, merge, patch)
    return blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, colours * patch * patch)


def patchify_video(frames: torch.Tensor, patch: int = 14, merge: int = 2) -> torch.Tensor:
    """uint8 [T, 3, H, W] -> uint8 [T/2 * gh * gw, 3 * 2 * patch * patch].

    Inner order (C, T, row, column). The last frame of an odd number is repeated.
    H and W are multiples of patch * merge.
    """
    if len(frames) % 2:
        frames = torch.cat((frames, frames[-1:]))
    count, colours, height, width = frames.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    blocks = frames.reshape(count // 2, 2, colours, rows, merge, patch, columns, merge, patch)
    patches = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return patches.reshape(-1, colours * 2 * patch * patch)


def normalize(
    patches: torch.Tensor,
    mean: tuple[float, float, float] = ImageRules.mean,
    std: tuple[float, float, float] = ImageRules.std,
) -> torch.Tensor:
    """uint8 [N, 588] (picture) or [N, 1176] (video) -> float32 [N, 1176]: the pixel_values.

    Bit for bit: one subtraction and one division in float32 by mean and std scaled to 0..255. The
    width tells pictures (588 = C, 14, 14: the slice is doubled) from videos (1176 = C, 2, 14, 14).
    """
    width = patches.shape[-1]
    if width not in (588, 1176):
        raise ValueError(f"found patches of {width} values, expected 588 (picture) or 1176 (video)")
    slices = width // 588
    colours = patches.reshape(-1, 3, slices, 196).to(torch.float32)
    centre = (torch.tensor(mean) * 255.0).to(patches.device).view(3, 1, 1)
    scale = (torch.tensor(std) * 255.0).to(patches.device).view(3, 1, 1)
    scaled = (colours - centre) / scale
    return scaled.expand(-1, -1, 2, -1).reshape(-1, 1176)
