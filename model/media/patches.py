"""Cuts resized pictures into uint8 patches, and normalizes patches as the reference does.

Shapes: C = 3 colours, p = patch size, T = frames of one patch (temporal patch size), gh and gw =
rows and columns of patches. The patches of one merge group (merge x merge patches, one visual
token) follow each other: the order is (rows, columns) of merge groups, then (rows, columns) within
a group. The reference is Qwen2VLImageProcessor of transformers.
"""

import numpy as np
import torch

Triple = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
_BAND_BYTES = 512 * 1024  # are cut at once, to stay in the CPU cache


def patchify_image(image: torch.Tensor, patch: int = 14, merge: int = 2) -> torch.Tensor:
    """uint8 [3, H, W] -> uint8 [gh * gw, 3 * p * p], inner order (C, row, column).

    One of the T equal temporal slices is stored. H and W are multiples of patch * merge.
    """
    return _patchify(image[None], patch, merge, 1)


def patchify_video(
    frames: torch.Tensor, patch: int = 14, merge: int = 2, slices: int = 2
) -> torch.Tensor:
    """uint8 [frames, 3, H, W] -> uint8 [ceil(frames / T) * gh * gw, 3 * T * p * p], T = slices.

    Inner order (C, T, row, column). The last frame is repeated up to a multiple of `slices`.
    H and W are multiples of patch * merge.
    """
    if missing := -len(frames) % slices:
        frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
    return _patchify(frames, patch, merge, slices)


def _patchify(frames: torch.Tensor, patch: int, merge: int, slices: int) -> torch.Tensor:
    # Works on bands of rows that fit the CPU cache, and moves the row of a patch as one element.
    pixels = frames.numpy()
    count, colours, height, width = pixels.shape
    factor = patch * merge
    rows, columns, groups = height // factor, width // factor, count // slices
    patch_row = np.dtype(f"V{patch}")
    patches = np.empty((groups, rows, columns, merge, merge, colours, slices, patch), patch_row)
    step = max(1, min(rows, _BAND_BYTES // max(1, slices * colours * factor * width)))
    planes = np.empty((slices, colours, step * factor, width), np.uint8)
    for group in range(groups):
        source = pixels[group * slices : (group + 1) * slices]
        for row in range(0, rows, step):
            count = min(step, rows - row)
            band = planes[:, :, : count * factor]
            band[...] = source[:, :, row * factor : (row + count) * factor]
            split = band.view(patch_row).reshape(
                slices, colours, count, merge, patch, columns, merge
            )
            patches[group, row : row + count] = split.transpose(2, 5, 3, 6, 1, 0, 4)
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

    Computes (values * factor - mean) / std for each colour, bit for bit as the reference does: with
    both `mean` and `factor` as (values - mean / factor) / (std / factor).

    mean, factor: None leaves out mean and std, or the factor. patch, slices: p and T. The width of
    the patches tells pictures, whose one slice is repeated T times, from videos.
    """
    width, area = patches.shape[-1], patch * patch
    if width not in (3 * area, 3 * slices * area):
        raise ValueError(
            f"found patches of {width} values, expected {3 * area} (picture) or "
            f"{3 * slices * area} (video)"
        )
    colours = patches.reshape(-1, 3, width // (3 * area), area)
    if mean is not None:
        shift, scale = torch.tensor(mean), torch.tensor(std)
        if factor is not None:
            shift, scale = shift * (1.0 / factor), scale * (1.0 / factor)
        shift, scale = (values.to(patches.device).view(3, 1, 1) for values in (shift, scale))
        colours = colours.to(torch.float32).sub_(shift).div_(scale)
    elif factor is not None:
        colours = colours * factor
    else:
        colours = colours.to(torch.float32)
    return colours.expand(-1, -1, slices, -1).reshape(-1, 3 * slices * area)
