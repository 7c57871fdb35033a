"""Fills a network with the tensors of a safetensors folder: one file, or shards with an index.

Strict: every parameter is given exactly once and in its shape, or the load fails and names what is
    wrong. Tensors are copied one by one straight into place, so the peak is the network and one
    tensor. It reads no other format.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from model.config import Qwen2VLConfig, load_config
from model.errors import ModelError
from model.qwen2_vl import Qwen2VL

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_model(
    folder: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: Qwen2VLConfig | None = None,
) -> Qwen2VL:
    """Build the network of `folder` in `dtype` (None: the file's own) on `device`, with its
    weights, for inference.

    Raises ModelError when a file is missing or damaged, or a tensor missing, unexpected or
    misshapen.
    """
    config = config or load_config(folder)
    files = weight_files(folder)
    with torch.device("meta"):
        model = Qwen2VL(config)
    model = model.to(dtype or _stored_dtype(files[0])).to_empty(device=device)
    model.tie()
    _fill(model, folder, files)
    # The rotary frequencies are computed, not stored, and to_empty() has dropped them; they stay
    # float32.
    for module in (model.visual, model.model):
        module.reset_frequencies(torch.device(device))
    return model.eval().requires_grad_(False)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`, in order. Raises ModelError when there are none or one is
    missing.
    """
    index = folder / INDEX
    if not index.exists():
        if (folder / SINGLE).exists():
            return [folder / SINGLE]
        raise ModelError(f"{folder} holds no weights: found neither {SINGLE} nor {INDEX}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of weights: {error!r}") from None
    for name in names:
        # A name is a file of this folder, never a path out of it.
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{index} names {name!r}, which is not a file of the folder")
    return [folder / name for name in names]


def _stored_dtype(path: Path) -> torch.dtype:
    for _, tensor in _tensors(path):
        return tensor.dtype
    raise ModelError(f"{path} holds no tensors")


def _fill(model: Qwen2VL, folder: Path, files: list[Path]) -> None:
    wanted = dict(model.named_parameters())
    tied = model.config.text.tie_word_embeddings
    missing, unexpected, misshapen = set(wanted), [], []
    for path in files:
        for stored, tensor in _tensors(path):
            name = hub_name(stored)
            if name == "lm_head.weight" and tied:
                continue
            if name not in missing:
                unexpected.append(stored)
            elif wanted[name].shape != tensor.shape:
                misshapen.append(
                    f"{stored} is {list(tensor.shape)}, expected {list(wanted[name].shape)}"
                )
                missing.discard(name)
            else:
                wanted[name].data.copy_(tensor)
                missing.discard(name)
    for problem, names in (
        ("missing", sorted(missing)),
        ("unexpected or repeated", unexpected),
        ("misshapen", misshapen),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ModelError(
                f"{folder}: {len(names)} tensors are {problem}: {'; '.join(names[:5])}{more}"
            )


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}") from None


def hub_name(name: str) -> str:
    """The name on the hub of a tensor saved from memory by transformers 5.x."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name
