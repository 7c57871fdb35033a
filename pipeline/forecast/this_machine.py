"""What this machine has, as a Ray cluster of its own would count it; without Ray and torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from mediamill.pipeline.ray_cluster.pool_sizes import Node

_MIN_CPUS = 2  # that a local cluster has at least


@dataclass(frozen=True)
class ThisMachine:
    """node: its resources. gpus: NVIDIA GPUs. device_memory: bytes that a replica may use."""

    node: Node
    gpus: int
    device_memory: float

    @classmethod
    def measure(cls) -> "ThisMachine":
        """Returns what this machine has now."""
        gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        free = _available() or memory / 2
        cpus = max(os.cpu_count() or 1, _MIN_CPUS)
        return cls(Node(cpus, gpus, 0.7 * memory), gpus, _gpu_memory() if gpus else free)


def _available() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0.0


def _gpu_memory() -> float:
    """Bytes of the first GPU; those of a small one if torch is not loaded yet to ask it."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 24e9
    return float(torch.cuda.get_device_properties(0).total_memory)
