"""Rotary embeddings: three axes (time, height, width) for the decoder, two for the vision tower.

Sources: RoFormer (arXiv 2104.09864) and M-RoPE (arXiv 2409.12191, section 2.1).
"""

from collections.abc import Sequence

import torch

Grid = tuple[int, int, int]


def grid_list(grids: torch.Tensor | Sequence[Grid], merge: int) -> list[Grid]:
    """Returns grids as tuples.

    Raises ValueError for one that is not three positive integers, or whose height or width is not
    divisible by `merge`.
    """
    rows = grids.tolist() if isinstance(grids, torch.Tensor) else [list(grid) for grid in grids]
    for row in rows:
        is_grid = isinstance(row, list) and len(row) == 3 and all(type(n) is int for n in row)
        if not is_grid or min(row) < 1 or row[1] % merge or row[2] % merge:
            raise ValueError(
                f"a grid is {row}, expected t, h and w, h and w being multiples of {merge}"
            )
    return [(t, h, w) for t, h, w in rows]


def text_rotation(
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    section: tuple[int, int, int],
    dtype: torch.dtype,
    scaling: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine for the decoder: `dtype` [T, head_dim] each, from int64 positions [3, T].

    inv_freq: float32 [head_dim/2], or [T, head_dim/2] where they differ by token.
    section: the sizes of the three chunks into which the frequencies are split, one for each axis.
    scaling: a factor of both results, in float32.
    """
    angles = positions[..., None].float() * inv_freq
    chunks = torch.split(angles, list(section), dim=-1)
    chosen = torch.cat([chunk[axis] for axis, chunk in enumerate(chunks)], dim=-1)
    full = torch.cat((chosen, chosen), dim=-1)
    return (full.cos() * scaling).to(dtype), (full.sin() * scaling).to(dtype)


def vision_rotation(
    grids: Sequence[Grid], inv_freq: torch.Tensor, merge: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine for the vision tower: float32 [N, head_dim] each, N = sum of t*h*w.

    Patches are in merge-group order: the `merge` x `merge` patches of one visual token are
    neighbors.
    """
    coordinates = torch.cat([_patch_coordinates(t, h, w, merge) for t, h, w in grids])
    angles = (coordinates.to(inv_freq.device)[..., None].float() * inv_freq).flatten(1)
    full = torch.cat((angles, angles), dim=-1)
    return full.cos(), full.sin()


def _patch_coordinates(t: int, h: int, w: int, merge: int) -> torch.Tensor:
    """(row, column) of each patch in merge-group order, int64 [t*h*w, 2]; alike for all t."""
    rows = torch.arange(h)[:, None].expand(h, w)
    columns = torch.arange(w)[None, :].expand(h, w)
    grid = torch.stack((rows, columns), dim=-1).reshape(h // merge, merge, w // merge, merge, 2)
    return grid.permute(0, 2, 1, 3, 4).reshape(h * w, 2).repeat(t, 1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates x [T, heads, head_dim] by cos and sin [T, head_dim], in x's dtype."""
    left, right = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-right, left), dim=-1) * sin[:, None]


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates x [T, heads, head_dim] in place and returns it, in fewer passes than `rotate`.

    cos, sin: [T, head_dim] of x's dtype; their two halves are equal.
    In half precision the result is rounded twice instead of three times.
    """
    left, right = x.chunk(2, dim=-1)
    half = left.shape[-1]
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    rotated = (left * cos).addcmul_(right, sin, value=-1)
    right.mul_(cos).addcmul_(left, sin)
    left.copy_(rotated)
    return x
