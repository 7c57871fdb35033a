"""How much memory a key-value cache may take, measured; and which errors mean that there was none.

Turns a loaded network and the largest work of one step into tokens of cache. It does not know
pages.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from mediamill.model.engine_core.allocation import bytes_per_token
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.layers.attention import AttentionName, PackedCausalAttention
from mediamill.model.media.image_rules import ImageRules

# Of the memory that is free: on a GPU what is left is for fragments, on a CPU for other programs.
GPU_PART, CPU_PART = 0.9, 0.5


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was missing, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def release_unused(device: torch.device) -> None:
    """Give back what nobody holds any more, so that it can be taken in other sizes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def cache_tokens(
    model: Qwen2VL,
    rules: Mapping[VisualKind, ImageRules],
    attention: AttentionName,
    rows: int,
    prefill_tokens: int,
    vision_patches: int,
) -> int:
    """Tokens for which a cache may take memory now, at most `rows` whole contexts.

    On a GPU nine tenths of what is free once the largest prefill and the largest call of the vision
    tower have been tried; on a CPU half of the memory that programs can still get.
    """
    text = model.config.text
    if model.device.type == "cuda":
        free = _free_on_gpu(model, rules, attention, prefill_tokens, vision_patches) * GPU_PART
    else:
        free = available_memory() * CPU_PART
    return max(1, min(rows * text.context_length, int(free / bytes_per_token(text, model.dtype))))


@torch.inference_mode()
def _free_on_gpu(
    model: Qwen2VL,
    rules: Mapping[VisualKind, ImageRules],
    attention: AttentionName,
    prefill_tokens: int,
    vision_patches: int,
) -> int:
    """Bytes that are free while the largest step runs."""
    device, merge = model.device, model.config.vision.spatial_merge_size
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    side = max(merge, math.isqrt(vision_patches) // merge * merge)
    values = rules["image"].patch_values("image")
    patches = torch.zeros(side * side, values, dtype=torch.uint8)
    model.visual.encode([VisualInput("image", patches, (1, side, side), merge)], rules, attention)
    tokens = min(prefill_tokens, model.config.text.context_length)
    ids = torch.zeros(tokens, dtype=torch.long, device=device)
    positions = torch.arange(tokens, device=device).expand(3, -1)
    embeddings = model.model.embed_tokens(ids)
    model.logits(
        model.hidden_states(embeddings, positions, PackedCausalAttention([tokens], attention))[-1:]
    )
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del patches, ids, positions, embeddings
    torch.cuda.empty_cache()
    return max(0, torch.cuda.mem_get_info(device)[0] - peak)


def available_memory() -> int:
    """Bytes that programs on this machine, or in this container, can still take.

    Linux: MemAvailable of /proc/meminfo, which counts the file cache as free, and what a control
    group still allows. Elsewhere a quarter of the machine's memory.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError, IndexError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            allowed = int(Path(limit).read_text(encoding="ascii"))
            free = min(free, allowed - int(Path(usage).read_text(encoding="ascii")))
        except (OSError, ValueError):  # "max", or no such group
            continue
    return max(0, free)
