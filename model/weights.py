"""Loads the weights of a checkpoint: one safetensors file, or several with an index.

Loading is strict: it fails, before memory is allocated, unless every parameter is stored exactly
once and in its shape. Values are copied into place in blocks, so that the peak of memory is the
model and one block. No other format is read, and never a pickle.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.local_copy import local_copy
from mediamill.model.checkpoint.safetensors_file import (
    FLOATS,
    StoredTensor,
    TensorCopy,
    read_blocks,
    read_header,
    shown_name,
)
from mediamill.model.errors import ModelError
from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig, load_config
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.layers.collectives import SINGLE_RANK, Collectives
from mediamill.model.layers.shards import WHOLE, Shard

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Files of other formats that a folder may have instead.
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER = "adapter_config.json"
# What AWQ and GPTQ, bitsandbytes and FP8 store beside or instead of a weight.
_QUANTIZED = {"qweight", "qzeros", "scales", "g_idx", "absmax", "quant_map", "SCB"}
_QUANTIZED |= {"weight_packed", "weight_scale", "weight_scale_inv"}


def load_model(
    folder: str | Path | Folder,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: Qwen2VLConfig | None = None,
    shard: Shard = WHOLE,
    ranks: Collectives = SINGLE_RANK,
) -> Qwen2VL:
    """Builds the model of `folder` and loads its weights, for inference.

    dtype: float32, float16 or bfloat16; None = the dtype of most stored values.
    config: as read from the folder; None = it is read here.
    shard: the part of the model that this rank holds, and reads.
    ranks: the collectives that connect it with the other ranks.
    Raises ModelError when a file is missing or damaged, when a tensor is missing, unexpected,
    repeated, misshapen or not of a floating dtype, and when a stored head that the config ties to
    the embedding differs from it. Raises ValueError for a device that does not exist.
    """
    folder = Folder.of(folder)
    device = _available(device)
    config = config or load_config(folder)
    with torch.device("meta"):
        whole = Qwen2VL(config)
        model = whole if shard.size == 1 else Qwen2VL(config, shard, ranks)
    folder, files, sources = _sources(folder, whole, config)
    expected = dict(whole.named_parameters())
    head = sources.pop(_HEAD) if _HEAD not in expected and _HEAD in sources else None
    model = model.to(dtype or _main_dtype(sources.values())).to_empty(device=device)
    model.tie()
    parameters = dict(model.named_parameters())
    for file in files:
        copies = [
            TensorCopy(stored, parameters[name], shard.tensor_slice(name, config.text))
            for name, stored in sources.items()
            if stored.file == file
        ]
        for values, target in read_blocks(folder, file, copies):
            target.copy_(values)
    if head:
        tensor_slice = shard.tensor_slice(_EMBEDDING, config.text)
        _check_head(folder, TensorCopy(head, parameters[_EMBEDDING], tensor_slice))
    # to_empty() drops the rotary frequencies, which are float32 and not stored.
    for module in (model.visual, model.model):
        module.reset_frequencies(device)
    return model.eval().requires_grad_(False)


def check_weights(folder: str | Path | Folder, config: Qwen2VLConfig | None = None) -> None:
    """Raises what `load_model` raises for files and for tensors that do not fit.

    Reads only the headers of the files. A folder at a URL is copied.
    """
    folder = Folder.of(folder)
    config = config or load_config(folder)
    with torch.device("meta"):
        _sources(folder, Qwen2VL(config), config)


def _sources(
    folder: Folder, whole: Qwen2VL, config: Qwen2VLConfig
) -> tuple[Folder, list[str], dict[str, StoredTensor]]:
    """Returns the local folder, its files, and the stored tensor of each parameter.

    whole: the network of all ranks. Raises ModelError.
    """
    # With both, the single file counts: the reference looks for it first.
    index = {} if folder.exists(_SINGLE) else _weight_map(folder)
    files = sorted(set(index.values())) or [_SINGLE]
    folder = local_copy(folder, files)
    headers = {file: read_header(folder, file) for file in files}
    expected = dict(whole.named_parameters())
    _refuse_quantized(folder, headers)
    sources = _matched(folder, headers, expected, config.text.tie_word_embeddings)
    _check_index(folder, index, headers)
    return folder, files, sources


def _available(device: torch.device | str) -> torch.device:
    """Returns the device. Raises ValueError if torch does not have it."""
    try:
        checked = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}, expected cpu, cuda or cuda:N") from None
    if checked.type == "cuda" and (checked.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is '{device}', and torch {torch.__version__} finds "
            f"{torch.cuda.device_count()} CUDA GPUs"
        )
    return checked


def _weight_map(folder: Folder) -> dict[str, str]:
    """Reads the index: the file name of each tensor name. Raises ModelError."""
    index = folder.read_json(_INDEX)
    if index is None:
        if folder.exists(_ADAPTER):
            weights = f"an adapter ({_ADAPTER}), which has to be merged into its model first"
        elif any(folder.exists(name) for name in _PICKLES):
            weights = f"{_PICKLES[0]}, which is a pickle and could run any code when it is read"
        else:
            weights = "neither"
        raise ModelError(
            f"{folder} holds no weights: expected {_SINGLE} or {_INDEX}, found {weights}"
        )
    where, files = folder.path(_INDEX), index.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ModelError(
            f"{where} is not an index of weights: weight_map is {files!r:.80}, expected an object "
            "with the names of tensors and of their files"
        )
    for file in sorted(set(map(str, files.values()))):
        # An index must not name a path outside of the folder.
        inside = bool(file) and file not in (".", "..") and not set(file) & set("/\\\0")
        if not inside or not file.endswith(".safetensors") or not folder.exists(file):
            raise ModelError(
                f"{where} names {file!r:.200}, which is not a safetensors file of the folder"
            )
    return {str(name): str(file) for name, file in files.items()}


def _matched(
    folder: Folder,
    headers: dict[str, list[StoredTensor]],
    expected: dict[str, torch.nn.Parameter],
    tied: bool,
) -> dict[str, StoredTensor]:
    """Returns the stored tensor of each parameter by its hub name, and a head that is tied.

    Raises ModelError with all tensors that do not match the parameters.
    """
    sources: dict[str, StoredTensor] = {}
    problems: dict[str, list[str]] = {
        kind: [] for kind in ("missing", "unexpected", "repeated", "misshapen", "of another dtype")
    }
    for tensor in chain.from_iterable(headers.values()):
        name = hub_name(tensor.name)
        parameter = _EMBEDDING if name == _HEAD and tied else name
        if parameter not in expected:
            problems["unexpected"].append(shown_name(tensor.name))
        elif name in sources:
            problems["repeated"].append(
                f"{shown_name(tensor.name)} ({tensor.file}, also {sources[name].file})"
            )
        else:
            sources[name] = tensor
            shape = tuple(expected[parameter].shape)
            if tensor.shape != shape:
                problems["misshapen"].append(
                    f"{tensor.name} is {list(tensor.shape)!s:.80}, expected {list(shape)}"
                )
            elif tensor.dtype not in FLOATS:
                problems["of another dtype"].append(
                    f"{tensor.name} is {tensor.dtype}, expected one of {', '.join(FLOATS)}"
                )
    problems["missing"] += sorted(set(expected) - set(sources))
    sentences = [_sentence(kind, names) for kind, names in problems.items() if names]
    if sentences:
        raise ModelError(f"{folder}: {'. '.join(sentences)}")
    return sources


def _sentence(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    verb = "tensor is" if len(names) == 1 else "tensors are"
    return f"{len(names)} {verb} {kind}: {'; '.join(names[:8])}{more}"


def _refuse_quantized(folder: Folder, headers: dict[str, list[StoredTensor]]) -> None:
    for tensor in chain.from_iterable(headers.values()):
        if tensor.name.rpartition(".")[2] in _QUANTIZED:
            raise ModelError(
                f"{folder.path(tensor.file)}: the weights are quantised (it holds "
                f"{shown_name(tensor.name)}), which is not supported: use the unquantised "
                "checkpoint"
            )


def _check_index(
    folder: Folder, index: dict[str, str], headers: dict[str, list[StoredTensor]]
) -> None:
    """Raises ModelError unless every tensor of the index is in the file that the index names."""
    files = {tensor.name: tensor.file for tensor in chain.from_iterable(headers.values())}
    for name, file in index.items():
        if files.get(name) != file:
            holder = f"{files[name]} has" if name in files else "none of its files has"
            raise ModelError(
                f"{folder.path(_INDEX)} looks for {shown_name(name)} in {file}, but {holder} it"
            )


def _main_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype:
    """The dtype of most values."""
    counts = dict.fromkeys(FLOATS, 0)
    for tensor in tensors:
        counts[tensor.dtype] += tensor.numel
    return FLOATS[max(counts, key=lambda dtype: counts[dtype])]


def _check_head(folder: Folder, head: TensorCopy) -> None:
    """Raises ModelError unless the stored head equals the embedding, which is its target."""
    for values, embedding in read_blocks(folder, head.stored.file, [head]):
        if not torch.equal(values.to(embedding.device, embedding.dtype), embedding):
            raise ModelError(
                f"{folder.path(head.stored.file)}: {head.stored.name} differs from {_EMBEDDING}, "
                "but tie_word_embeddings in config.json says that they are one: set it to false"
            )


def hub_name(name: str) -> str:
    """Returns a tensor's name on the hub; transformers 5.x saves some under other names."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name
