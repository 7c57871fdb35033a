"""Turns the name of a number format into that of torch."""

import torch

_KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def wanted_dtype(name: str, device: str) -> torch.dtype | None:
    """float32, bfloat16 or float16; of "auto" float32 on a CPU, and None, the checkpoint's own,
    elsewhere. Raises ValueError.
    """
    if name == "auto":
        return torch.float32 if device == "cpu" else None
    if name not in _KINDS:
        raise ValueError(f"dtype is {name!r}, expected auto, float32, bfloat16 or float16")
    return _KINDS[name]
