"""Positions of the tokens of a padded batch, from the start or after those of a cache."""

import torch

from mediamill.model.layers.padding import Packing


def text_positions(
    position_ids: torch.Tensor | None, packing: Packing, splits_rows: bool
) -> torch.Tensor:
    """Packed positions int64 [3, T], from the caller's or by counting the tokens of each row.

    position_ids: [B, S] for text, [3, B, S], or [4, B, S] whose first row counts the tokens. B may
        be 1 for the same positions in all rows. None: each row's real tokens are counted from its
        start.
    splits_rows: whether an interruption of that first row begins another sequence, which does not
        see the one before.
    Raises ValueError for another shape.
    """
    if position_ids is None:
        counts = [
            torch.arange(start, start + length)
            for start, length in zip(packing.starts, packing.row_lengths, strict=True)
        ]
        return torch.cat(counts).expand(3, -1)
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
        if splits_rows:
            breaks = torch.ones_like(cells[0], dtype=torch.bool)
            breaks[:, 1:] = cells[0, :, 1:] != cells[0, :, :-1] + 1
            packing.split(breaks)
        cells = cells[1:]
    return packing.pack(cells.permute(1, 2, 0)).T.expand(3, -1)


def rope_deltas(positions: torch.Tensor, packing: Packing) -> torch.Tensor:
    """1 + the largest position of each row - its tokens, those of the cache included: int64 [B]."""
    deltas = []
    rows = torch.split(positions, packing.row_lengths, dim=1)
    for row, past, start in zip(rows, packing.past, packing.starts, strict=True):
        largest = torch.tensor(start - 1, device=positions.device)
        if row.shape[1]:
            largest = torch.maximum(largest, row.max())
        deltas.append(largest + 1 - past - row.shape[1])
    return torch.stack(deltas)
