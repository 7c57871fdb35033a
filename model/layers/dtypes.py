"""The torch dtype for the name that a user gives."""

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str, device: str) -> torch.dtype | None:
    """Returns the dtype called `name`: float32, bfloat16, float16 or auto.

    "auto" is float32 on a CPU; elsewhere it is None, which means the checkpoint's own dtype.
    Raises ValueError for another name.
    """
    if name == "auto":
        return torch.float32 if device == "cpu" else None
    if name not in _DTYPES:
        raise ValueError(f"dtype is {name!r}, expected auto, float32, bfloat16 or float16")
    return _DTYPES[name]
