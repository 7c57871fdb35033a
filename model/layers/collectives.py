"""Collective operations between the ranks of a tensor-parallel network.

Every reduction of the network is one of these calls, at the place where it happens. The caller
starts the process group.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Collectives:
    """The collective operations of rank `rank` among `size` ranks that hold one network together.

    With one rank there is no `group`, and every operation returns its argument. Raises ValueError
    for a rank or a group that does not fit the size.
    """

    rank: int = 0
    size: int = 1
    group: "dist.ProcessGroup | None" = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank is {self.rank}, expected 0 to {self.size - 1}")
        if (self.size > 1) != (self.group is not None):
            raise ValueError(f"{self.size} ranks need {'a' if self.size > 1 else 'no'} group")

    def all_reduce_(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the ranks' x, the same bits on each; a contiguous x is overwritten."""
        if self.group is not None:
            x = x.contiguous()
            dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """[..., n] of each rank -> [..., size * n], in the order of the ranks."""
        if self.group is None:
            return x
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.group)
        return torch.cat(parts, dim=-1)

    def broadcast_(self, x: torch.Tensor) -> torch.Tensor:
        """Overwrites x with that of rank 0, and returns it."""
        if self.group is not None:
            dist.broadcast(x, group_src=0, group=self.group)
        return x

    def all_reduce_min(self, number: int, device: torch.device) -> int:
        """Returns the smallest of the ranks' numbers."""
        if self.group is None:
            return number
        value = torch.tensor(number, dtype=torch.int64, device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MIN, group=self.group)
        return int(value)


SINGLE_RANK = Collectives()
