"""Conversion between padded batches [B, S] and their real tokens, packed as [T]."""

from collections.abc import Sequence

import torch

from mediamill.model.layers.cache import KeyValueCache


class Packing:
    """Which cells of a padded batch are real tokens, and to which sequences they belong.

    shape: (B, S).
    real: bool [B, S], true for real tokens; None where every cell is one.
    row_lengths: real tokens of each row.
    lengths: of the sequences, in order; a row may hold several.
    past: tokens of each row in the cache.
    starts: position of each row's first token.
    """

    def __init__(
        self, shape: tuple[int, int], real: torch.Tensor | None, cache: KeyValueCache | None
    ) -> None:
        self.shape = shape
        self.real = real
        self.past: list[int] = [0] * shape[0] if cache is None else cache.lengths.tolist()
        self.starts = self.past
        if cache is not None and cache.rope_deltas is not None:
            deltas = cache.rope_deltas.tolist()
            self.starts = [n + delta for n, delta in zip(self.past, deltas, strict=True)]
        self.row_lengths: list[int] = (
            [shape[1]] * shape[0] if real is None else real.sum(1).tolist()
        )
        self.lengths = self.row_lengths

    def split(self, starts: torch.Tensor) -> None:
        """Splits rows into sequences: starts is bool [B, S], true where another one begins."""
        starts = starts.clone()
        starts[:, 0] = True
        indices = self.pack(starts).nonzero()[:, 0].tolist()
        ends = [*indices[1:], sum(self.row_lengths)]
        self.lengths = [end - start for start, end in zip(indices, ends, strict=True)]

    def pack(self, cells: torch.Tensor) -> torch.Tensor:
        """[B, S, ...] -> [T, ...], row after row."""
        return cells.flatten(0, 1) if self.real is None else cells[self.real]

    def rows(self, cells: torch.Tensor) -> list[torch.Tensor]:
        """[B, S, ...] -> the real cells of each row."""
        return list(torch.split(self.pack(cells), self.row_lengths))

    def unpack(self, tokens: torch.Tensor) -> torch.Tensor:
        """[T, ...] -> [B, S, ...], zeros at padding."""
        if self.real is None:
            return tokens.view(*self.shape, *tokens.shape[1:])
        cells = tokens.new_zeros(*self.shape, *tokens.shape[1:])
        return cells.masked_scatter(self.real.view(*self.shape, *[1] * (tokens.ndim - 1)), tokens)

    def unpack_attention(self, calls: Sequence[torch.Tensor], seen: torch.Tensor) -> torch.Tensor:
        """The weights of one layer, [n, H, new, all] per call over n sequences -> [B, H, S, K].

        seen: bool [B, K], which columns are real tokens; the last S are the new ones.
        """
        batch, width = self.shape
        columns = seen.shape[1]
        padded = calls[0].new_zeros(batch, calls[0].shape[1], width, columns)
        real_columns = [row.nonzero()[:, 0] for row in seen]
        row, used = 0, 0
        for weights in (sequence for call in calls for sequence in call):
            new = weights.shape[1]
            while used + new > self.row_lengths[row] or self.row_lengths[row] == 0:
                row, used = row + 1, 0
            first = self.past[row] + used
            queries = real_columns[row][first : first + new] - (columns - width)
            # A sequence that starts within its row does not see what is before it.
            keys = real_columns[row][first + new - weights.shape[2] : first + new]
            padded[row, :, queries[:, None], keys] = weights
            used += new
        return padded


def packing_for(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    mask: torch.Tensor | None,
    cache: KeyValueCache | None,
    hidden: int,
) -> Packing:
    """Checks the shapes of a batch, and returns which of its cells are real tokens.

    input_ids: int64 [B, S]; inputs_embeds: [B, S, hidden]; at least one of them.
    mask: [B, S], or [B, columns + S] with a cache that has seen `columns`; 1 or true for real
        tokens. Padding may be anywhere.
    Raises ValueError for other shapes, for a mask that contradicts the cache about the tokens
    before, for a row without any token, and for a cache of another batch size.
    """
    if input_ids is not None and (input_ids.ndim != 2 or input_ids.dtype != torch.long):
        raise ValueError(
            f"input_ids is {input_ids.dtype} {list(input_ids.shape)}, expected int64 [B, S]"
        )
    if inputs_embeds is not None and (inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != hidden):
        raise ValueError(f"inputs_embeds is {list(inputs_embeds.shape)}, expected [B, S, {hidden}]")
    batches = [x.shape[:2] for x in (input_ids, inputs_embeds) if x is not None]
    if not batches:
        raise ValueError("neither input_ids nor inputs_embeds is given")
    if batches[0] != batches[-1]:
        raise ValueError(
            f"input_ids is {list(batches[0])}, and inputs_embeds is {[*batches[1], hidden]}"
        )
    batch, width = batches[0]
    columns = 0 if cache is None else cache.seen.shape[1]
    if cache is not None and cache.batch != batch:
        raise ValueError(f"the batch has {batch} rows, and the cache {cache.batch}")
    if batch == 0 or width == 0:
        raise ValueError(f"the batch is [{batch}, {width}], expected at least one cell")
    if mask is None:
        return Packing((batch, width), None, cache)
    if tuple(mask.shape) != (batch, columns + width):
        raise ValueError(
            f"attention_mask is {list(mask.shape)}, expected {[batch, columns + width]}"
        )
    real = mask.bool()
    if cache is not None and not torch.equal(real[:, :columns], cache.seen.to(real.device)):
        raise ValueError("attention_mask contradicts the cache about the tokens before these")
    if not bool(real.any(1).all()):
        raise ValueError("attention_mask has a row of zeros: a row without tokens has no answer")
    new = real[:, columns:]
    if not bool(new.any()):
        raise ValueError("attention_mask has no new token in any row")
    return Packing((batch, width), None if bool(new.all()) else new, cache)


def select_logits(hidden: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
    """Returns the part of hidden states [B, S, hidden] whose logits are requested.

    keep: 0 for all, n > 0 for the last n columns, int64 [K] columns, int64 [B, K] columns of each
        row, or bool [B, S] cells, which give [cells, hidden].
    Raises ValueError for anything else.
    """
    if isinstance(keep, int):
        if keep < 0:
            raise ValueError(f"logits_to_keep is {keep}, expected 0 or more")
        return hidden[:, -keep:] if keep else hidden
    if keep.dtype == torch.bool and keep.shape == hidden.shape[:2]:
        return hidden[keep]
    if keep.dtype == torch.long and keep.ndim == 1:
        return hidden[:, keep]
    if keep.dtype == torch.long and keep.ndim == 2 and len(keep) == len(hidden):
        return torch.take_along_dim(hidden, keep[..., None], dim=1)
    raise ValueError(
        f"logits_to_keep is {keep.dtype} {list(keep.shape)}, expected a number, int64 [K] or "
        f"[{len(hidden)}, K], or bool {list(hidden.shape[:2])}"
    )
