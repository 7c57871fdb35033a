"""What the processes of one tensor-parallel network say to one another: sums, gatherings, bounds.

Every reduction of the network goes through here and is written where it happens. Nothing is started
at import: a `Collectives` with more than one rank holds a process group that its caller
has started.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Collectives:
    """This process among `size` that hold one network together. group: None when it is alone."""

    rank: int = 0
    size: int = 1
    group: "ProcessGroup | None" = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank is {self.rank}, expected 0 to {self.size - 1}")
        if (self.size > 1) != (self.group is not None):
            raise ValueError(f"{self.size} ranks need {'a' if self.size > 1 else 'no'} group")

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        """X of all ranks added up, in place; every rank gets the same bits."""
        if self.group is not None:
            import torch.distributed as dist

            x = x.contiguous()
            dist.all_reduce(x, group=self.group)
        return x

    def joined(self, x: torch.Tensor) -> torch.Tensor:
        """[..., n] of each rank -> [..., size * n], the ranks in order."""
        if self.group is None:
            return x
        import torch.distributed as dist

        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.group)
        return torch.cat(parts, dim=-1)

    def first_(self, x: torch.Tensor) -> torch.Tensor:
        """The first rank's x, in place."""
        if self.group is not None:
            import torch.distributed as dist

            dist.broadcast(x, group_src=0, group=self.group)
        return x

    def least(self, number: int, device: torch.device) -> int:
        """The smallest of the ranks' numbers."""
        if self.group is None:
            return number
        import torch.distributed as dist

        value = torch.tensor(number, dtype=torch.int64, device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MIN, group=self.group)
        return int(value)


SINGLE_RANK = Collectives()
