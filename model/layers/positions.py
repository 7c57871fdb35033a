"""Positions of the tokens of a padded batch, from the start or after those of a cache."""

from collections.abc import Sequence

import torch

from mediamill.model.layers.cache import KeyValueCache
from mediamill.model.layers.padding import Packing


def counted_positions(packing: Packing, starts: Sequence[int]) -> torch.Tensor:
    """Packed positions int64 [3, T] of text: counts each row's real tokens from its start."""
    counts = [
        torch.arange(start, start + length)
        for start, length in zip(starts, packing.row_lengths, strict=True)
    ]
    return torch.cat(counts).expand(3, -1)


def given_positions(position_ids: torch.Tensor, packing: Packing, packs: bool) -> torch.Tensor:
    """Packed positions int64 [3, T] from the caller's.

    position_ids: [B, S] for text, [3, B, S], or [4, B, S] whose first row counts the tokens. B may
        be 1 for the same positions in all rows.
    packs: whether an interruption of that count begins another sequence, which does not see the one
        before.
    Raises ValueError for another shape.
    """
    batch, width = packing.shape
    shape = tuple(position_ids.shape)
    fits = shape[-2:] in ((batch, width), (1, width))
    axes = shape[0] if len(shape) == 3 else 1
    if not fits or len(shape) not in (2, 3) or axes not in (1, 3, 4):
        raise ValueError(
            f"position_ids is {list(shape)}, expected [{batch}, {width}], [3, {batch}, {width}] or "
            f"[4, {batch}, {width}]"
        )
    cells = position_ids.reshape(axes, -1, width).expand(-1, batch, -1)
    if axes == 4:
        if packs:
            breaks = torch.ones_like(cells[0], dtype=torch.bool)
            breaks[:, 1:] = cells[0, :, 1:] != cells[0, :, :-1] + 1
            packing.split(breaks)
        cells = cells[1:]
    return packing.pack(cells.permute(1, 2, 0)).T.expand(3, -1)


def past_starts(cache: KeyValueCache | None, rows: int) -> tuple[list[int], list[int]]:
    """Returns, for each row, its tokens in the cache and the position of the next one."""
    if cache is None:
        return [0] * rows, [0] * rows
    past = cache.lengths.tolist()
    deltas = [0] * rows if cache.rope_deltas is None else cache.rope_deltas.tolist()
    return past, [n + delta for n, delta in zip(past, deltas, strict=True)]


def rope_deltas(
    positions: torch.Tensor, packing: Packing, past: Sequence[int], starts: Sequence[int]
) -> torch.Tensor:
    """1 + the largest position of each row - its tokens, those of the cache included: int64 [B]."""
    deltas = []
    for row, n, start in zip(
        torch.split(positions, packing.row_lengths, dim=1), past, starts, strict=True
    ):
        largest = torch.tensor(start - 1, device=positions.device)
        if row.shape[1]:
            largest = torch.maximum(largest, row.max())
        deltas.append(largest + 1 - n - row.shape[1])
    return torch.stack(deltas)
