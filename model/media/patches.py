"""Turns pixels into uint8 patches, and uint8 patches into the reference's numbers.

Shapes: C = 3 colours, p = patch size, T = frames of one patch, gh and gw = rows and columns of
patches; patches of one merge group are neighbours: the order is (rows, columns) of merge groups,
then (rows, columns) within the group. Which sizes and colours a checkpoint wants is not known here.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

Triple = tuple[float, float, float]
Resample = Literal["bicubic", "bilinear"]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
_BAND = 512 * 1024  # bytes: what is cut at once
LONGEST = 200  # times the shorter side; beyond it smart_resize gives up


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
    if height < 1 or width < 1:
        raise ValueError(f"the picture is {width} x {height} pixels; expected at least 1 x 1")
    if max(height, width) / min(height, width) > LONGEST:
        raise ValueError(
            f"the picture is {width} x {height} pixels; "
            f"expected no side more than {LONGEST} times the other"
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

    Always uint8 on the CPU: that rounds between its two passes, as the reference does; other
    devices and dtypes give other pixels.
    """
    if image.dtype != torch.uint8 or image.device.type != "cpu":
        raise TypeError(f"found {image.dtype} on {image.device}, expected torch.uint8 on cpu")
    if image.shape[-2:] == (height, width):
        return image
    # Pixel by pixel in memory is faster by a multiple, with the batch's stride as torch expects it.
    batch = image.movedim(-3, -1).reshape(-1, *image.shape[-2:], image.shape[-3]).movedim(-1, 1)
    resized = functional.interpolate(
        batch, (height, width), mode=resample, antialias=True, align_corners=False
    )
    return resized.reshape(*image.shape[:-2], height, width)


def patchify_image(image: torch.Tensor, patch: int = 14, merge: int = 2) -> torch.Tensor:
    """uint8 [3, H, W] -> uint8 [gh * gw, 3 * p * p], inner order (C, row, column).

    The temporal slices of a picture are equal: one is kept. H and W are multiples of patch * merge.
    """
    return _cut(image[None], patch, merge, 1)


def patchify_video(
    frames: torch.Tensor, patch: int = 14, merge: int = 2, slices: int = 2
) -> torch.Tensor:
    """uint8 [frames, 3, H, W] -> uint8 [ceil(frames / T) * gh * gw, 3 * T * p * p], T = slices.

    Inner order (C, T, row, column). The last frame is repeated up to a multiple of `slices`.
    H and W are multiples of patch * merge.
    """
    if missing := -len(frames) % slices:
        frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
    return _cut(frames, patch, merge, slices)


def _cut(frames: torch.Tensor, patch: int, merge: int, slices: int) -> torch.Tensor:
    """As `patchify_video`, for a multiple of `slices` frames: band by band, each within the cache,
    and a patch's row of one colour in one piece.
    """
    pixels = frames.numpy()
    count, colours, height, width = pixels.shape
    factor = patch * merge
    rows, columns, groups = height // factor, width // factor, count // slices
    piece = np.dtype(f"V{patch}")
    patches = np.empty((groups, rows, columns, merge, merge, colours, slices, patch), piece)
    step = max(1, min(rows, _BAND // max(1, slices * colours * factor * width)))
    planes = np.empty((slices, colours, step * factor, width), np.uint8)
    for group in range(groups):
        source = pixels[group * slices : (group + 1) * slices]
        for row in range(0, rows, step):
            count = min(step, rows - row)
            band = planes[:, :, : count * factor]
            band[...] = source[:, :, row * factor : (row + count) * factor]
            cut = band.view(piece).reshape(slices, colours, count, merge, patch, columns, merge)
            patches[group, row : row + count] = cut.transpose(2, 5, 3, 6, 1, 0, 4)
    values = patches.reshape(-1).view(np.uint8)
    return torch.from_numpy(values).view(-1, colours * slices * patch * patch)


def normalize(
    patches: torch.Tensor,
    mean: Triple | None = CLIP_MEAN,
    std: Triple = CLIP_STD,
    factor: float | None = 1 / 255,
    patch: int = 14,
    slices: int = 2,
) -> torch.Tensor:
    """uint8 [N, 3*p*p] (pictures) or [N, 3*T*p*p] (videos) -> float32 [N, 3*T*p*p].

    mean None: nothing is subtracted and divided by. factor None: nothing is multiplied by. The
    width tells pictures, whose one slice is repeated T = slices times, from videos.
    Bit for bit the reference's order of rounding: with both, one subtraction and one division by
    mean and std that were scaled first; with one of them, that one alone.
    """
    width, area = patches.shape[-1], patch * patch
    if width not in (3 * area, 3 * slices * area):
        raise ValueError(
            f"found patches of {width} values, expected {3 * area} (picture) or "
            f"{3 * slices * area} (video)"
        )
    colours = patches.reshape(-1, 3, width // (3 * area), area)
    if mean is not None:
        centre, scale = torch.tensor(mean), torch.tensor(std)
        if factor is not None:
            centre, scale = centre * (1.0 / factor), scale * (1.0 / factor)
        centre, scale = (one.to(patches.device).view(3, 1, 1) for one in (centre, scale))
        colours = colours.to(torch.float32).sub_(centre).div_(scale)
    elif factor is not None:
        colours = colours * factor
    else:
        colours = colours.to(torch.float32)
    return colours.expand(-1, -1, slices, -1).reshape(-1, 3 * slices * area)
