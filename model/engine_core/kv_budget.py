"""Measures how many tokens the KV cache may hold, and recognizes out-of-memory errors."""

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

# Fractions of the free memory: the rest is for fragmentation on a GPU, for other programs on a CPU.
GPU_FRACTION, CPU_FRACTION = 0.9, 0.5
_CGROUPS = Path("/sys/fs/cgroup")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory of a GPU or of the machine ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def release_unused(device: torch.device) -> None:
    """Returns unused cached memory to the device, for allocations of other sizes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def cache_tokens(
    model: Qwen2VL,
    rules: Mapping[VisualKind, ImageRules],
    attention: AttentionName,
    batch_size: int,
    prefill_tokens: int,
    vision_patches: int,
) -> int:
    """Returns how many tokens a KV cache may hold, at most those of `batch_size` whole contexts.

    On a GPU they take nine tenths of the memory that is free during the largest prefill and the
    largest call of the vision tower, which are run for this; on a CPU half of what is available.
    """
    text = model.config.text
    if model.device.type == "cuda":
        free = _free_on_gpu(model, rules, attention, prefill_tokens, vision_patches) * GPU_FRACTION
    else:
        free = available_memory() * CPU_FRACTION
    tokens = int(free / bytes_per_token(text, model.dtype))
    return max(1, min(batch_size * text.context_length, tokens))


@torch.inference_mode()
def _free_on_gpu(
    model: Qwen2VL,
    rules: Mapping[VisualKind, ImageRules],
    attention: AttentionName,
    prefill_tokens: int,
    vision_patches: int,
) -> int:
    """Returns the bytes that are free while the largest step runs."""
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
    attend = PackedCausalAttention([tokens], attention)
    model.logits(model.hidden_states(embeddings, positions, attend)[-1:])
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del patches, ids, positions, embeddings
    torch.cuda.empty_cache()
    return max(0, torch.cuda.mem_get_info(device)[0] - peak)


def available_memory() -> int:
    """Returns the bytes that programs on this machine, or in this container, can still allocate.

    On Linux the smaller of MemAvailable of /proc/meminfo, which counts the file cache as free, and
    what is left of the cgroup's limit. Elsewhere a quarter of the machine's memory.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError, IndexError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            maximum = int((_CGROUPS / limit).read_text(encoding="ascii"))
            free = min(free, maximum - int((_CGROUPS / usage).read_text(encoding="ascii")))
        except (OSError, ValueError):  # "max", or no such cgroup
            continue
    return max(0, free)
