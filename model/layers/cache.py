"""The key-value cache of the padded forward pass: one contiguous row for each sequence."""

import torch


class KeyValueCache:
    """For each layer, keys and values [B, Hkv, capacity, d], stored as [B, capacity, Hkv, d].

    lengths: int64 [B], tokens stored per sequence; the caller advances it.
    rope_deltas: int64 [B], the position of each sequence's next token minus its index; None before
        the first forward pass, which sets it.
    seen: bool [B, columns], which cells of the padded batches so far were real tokens.
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
        # Zeros, not empty: masked cells enter a product with weight 0, and 0 * NaN is NaN.
        # Tokens come before heads, as packed attention needs them.
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
        """Tokens that fit into the row of each sequence."""
        return self.keys[0].shape[2]

    def reserve(self, capacity: int) -> None:
        """Grows the rows to at least `capacity` tokens.

        They at least double, so that growing token by token takes linear time.
        """
        if capacity <= self.capacity:
            return
        added = max(capacity, 2 * self.capacity) - self.capacity
        self.keys, self.values = (
            [_grown(tensor, added) for tensor in tensors] for tensors in (self.keys, self.values)
        )

    def keep(self, rows: torch.Tensor) -> None:
        """Keeps the sequences `rows` (int64 indices), in that order, and drops the others."""
        self.keys, self.values = (
            [tensor.transpose(1, 2)[rows].transpose(1, 2) for tensor in tensors]
            for tensors in (self.keys, self.values)
        )
        self.lengths, self.seen = self.lengths[rows], self.seen[rows]
        if self.rope_deltas is not None:
            self.rope_deltas = self.rope_deltas[rows]


def _grown(tensor: torch.Tensor, added: int) -> torch.Tensor:
    stored = tensor.transpose(1, 2)
    rest = stored.new_zeros(stored.shape[0], added, *stored.shape[2:])
    return torch.cat((stored, rest), dim=1).transpose(1, 2)
