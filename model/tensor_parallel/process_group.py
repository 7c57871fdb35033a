"""Joins and leaves the torch process group of the ranks of one model.

The rendezvous is a file in a folder of each replica, so that replicas of one machine cannot be
mixed up and no port has to be chosen.
"""

from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch

from mediamill.model.layers.collectives import SINGLE_RANK, Collectives


def join(folder: Path, rank: int, size: int, device: torch.device, timeout_s: float) -> Collectives:
    """Joins the process group as rank `rank`, and waits for the others. NCCL on GPUs, gloo on CPUs.

    folder: where the ranks meet. timeout_s: for the others to join, and for each collective.
    Raises RuntimeError when they do not join.
    """
    if size == 1:
        return SINGLE_RANK
    import torch.distributed as dist

    if dist.is_initialized():
        raise RuntimeError("this process is already in a process group")
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    store = dist.FileStore(str(folder / "ranks"), size)  # type: ignore[attr-defined]
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if gpu else None,
    )
    return Collectives(rank, size, dist.group.WORLD)


def leave() -> None:
    """Leaves the process group, if this process is in one; the other ranks may be gone."""
    import torch.distributed as dist

    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()
