"""Keys and values of the tokens that a batch of sequences has seen, dense, growing as asked.

It does not know layers' weights or positions; it keeps, for the caller, what continues the
positions.
"""

import torch


class KeyValueCache:
    """Per layer, keys and values [B, Hkv, capacity, d] (a view: stored as [B, capacity, Hkv, d]).

    lengths: int64 [B], tokens stored per sequence; its owner advances it.
    rope_deltas: int64 [B], what has to be added to a token's number to get its position; set by
        `Qwen2VL.forward`, which reads it when it goes on; None before.
    seen: bool [B, columns], which cells of the padded batches that `Qwen2VL.forward` put in were
        real tokens.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # Zeros, not empty: masked slots enter a product with weight 0, and 0 * NaN is NaN.
        # Tokens before heads, as packed attention wants them.
        shape = (batch, capacity, heads, dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device).transpose(1, 2) for _ in range(layers)]
            for _ in range(2)
        )
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.rope_deltas: torch.Tensor | None = None
        self.seen = torch.zeros(batch, 0, dtype=torch.bool, device=device)

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Tokens for which each sequence has room."""
        return self.keys[0].shape[2]

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens per sequence, doubling at least, so that growing token
        by token stays linear.
        """
        if capacity <= self.capacity:
            return
        more = max(capacity, 2 * self.capacity) - self.capacity
        self.keys, self.values = (
            [_longer(tensor, more) for tensor in tensors] for tensors in (self.keys, self.values)
        )

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only the sequences `rows` (int64 indices), in that order."""
        self.keys, self.values = (
            [tensor.transpose(1, 2)[rows].transpose(1, 2) for tensor in tensors]
            for tensors in (self.keys, self.values)
        )
        self.lengths, self.seen = self.lengths[rows], self.seen[rows]
        if self.rope_deltas is not None:
            self.rope_deltas = self.rope_deltas[rows]


def _longer(tensor: torch.Tensor, more: int) -> torch.Tensor:
    stored = tensor.transpose(1, 2)
    rest = stored.new_zeros(stored.shape[0], more, *stored.shape[2:])
    return torch.cat((stored, rest), dim=1).transpose(1, 2)
