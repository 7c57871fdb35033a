"""Starts and ends the process group through which the ranks of one network speak.

The ranks meet at a file in a folder of their own, so that replicas of one machine cannot meet one
another, and no port has to be chosen. It does not know networks.
"""

from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch

from mediamill.model.layers.collectives import SINGLE_RANK, Collectives


def join(folder: Path, rank: int, size: int, device: torch.device, timeout_s: float) -> Collectives:
    """This process as rank `rank`, once all have come. NCCL on GPUs, gloo on CPUs.

    timeout_s: for the others to come, and for each exchange. Raises RuntimeError when they do not.
    """
    if size == 1:
        return SINGLE_RANK
    import torch.distributed as dist

    if dist.is_initialized():
        raise RuntimeError("this process belongs to a process group already")
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
    """End this process's membership; the others may be gone."""
    import torch.distributed as dist

    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()
