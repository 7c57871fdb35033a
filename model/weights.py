"""Fills a network with the tensors of a safetensors folder: one file, or shards with an index.

Strict: every parameter is given exactly once and in its shape, or the load fails and names what is
    wrong, before memory is taken. Values are read straight into place, so the peak is the network
    and one buffer. It reads no other format, and never a pickle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.safetensors_file import StoredTensor, named, read_header
from mediamill.model.checkpoint.shard_reader import read_columns, row_parts
from mediamill.model.checkpoint.stored_values import FLOATS, read_into, read_values
from mediamill.model.errors import ModelError
from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig, load_config
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.layers.collectives import SINGLE_RANK, Collectives
from mediamill.model.layers.shards import WHOLE, Shard

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Files of other formats that a folder may have instead, and what the sentence says of them.
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER = "adapter_config.json"
# What AWQ and GPTQ, bitsandbytes and FP8 store beside or instead of a weight.
_QUANTISED = {"qweight", "qzeros", "scales", "g_idx", "absmax", "quant_map", "SCB"}
_QUANTISED |= {"weight_packed", "weight_scale", "weight_scale_inv"}


@dataclass(frozen=True)
class _Source:
    """A stored tensor and the file that has it."""

    file: str
    tensor: StoredTensor


def load_model(
    folder: str | Path | Folder,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: Qwen2VLConfig | None = None,
    shard: Shard = WHOLE,
    ranks: Collectives = SINGLE_RANK,
) -> Qwen2VL:
    """Build the network of `folder` in `dtype` on `device`, with its weights, for inference.

    dtype: float32, float16 or bfloat16; None = the one in which the files hold most values.
    shard: the part of it that is built, and read; ranks: those that have the others.
    Raises ModelError when a file is missing or damaged, when a tensor is missing, unexpected,
    repeated, misshapen or not of a floating dtype, and when a stored head that the config ties to
    the embedding differs from it. Raises ValueError for a device that is not there.
    """
    folder = Folder.of(folder)
    device = _present(device)
    config = config or load_config(folder)
    with torch.device("meta"):
        whole = Qwen2VL(config)
        model = whole if shard.size == 1 else Qwen2VL(config, shard, ranks)
    index, headers = _headers(folder)
    wanted = dict(whole.named_parameters())
    _refuse_quantised(folder, headers)
    sources = _matched(folder, headers, wanted, config.text.tie_word_embeddings)
    _check_index(folder, index, headers)
    head = sources.pop(_HEAD) if _HEAD not in wanted and _HEAD in sources else None
    model = model.to(dtype or _main_dtype(list(sources.values()))).to_empty(device=device)
    model.tie()
    parameters = dict(model.named_parameters())
    for file in headers:
        here = {name: source.tensor for name, source in sources.items() if source.file == file}
        parts = {name: shard.tensor_slice(name, config.text) for name in here}
        rows = [
            piece
            for name, stored in here.items()
            for piece in row_parts(stored, parameters[name], parts[name])
        ]
        read_into(folder, file, rows)
        for name, part in parts.items():
            if part is not None and part.dim == 1:
                read_columns(folder, file, here[name], parameters[name], part.spans[0])
    if head:
        part = shard.tensor_slice(_EMBEDDING, config.text)
        _check_head(folder, head, row_parts(head.tensor, parameters[_EMBEDDING], part))
    # The rotary frequencies are computed, not stored, and to_empty() has dropped them; they stay
    # float32.
    for module in (model.visual, model.model):
        module.reset_frequencies(device)
    return model.eval().requires_grad_(False)


def _headers(folder: Folder) -> tuple[dict[str, str], dict[str, list[StoredTensor]]]:
    """The index, empty without one, and the tensors of each file."""
    # With both, the single file counts: the reference looks for it first.
    index = {} if folder.exists(SINGLE) else _weight_map(folder)
    files = sorted(set(index.values())) or [SINGLE]
    return index, {file: read_header(folder, file) for file in files}


def _present(device: torch.device | str) -> torch.device:
    """The device, found before anything is read. Raises ValueError."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}, expected cpu, cuda or cuda:N") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is '{device}', and torch {torch.__version__} finds "
            f"{torch.cuda.device_count()} CUDA GPUs"
        )
    return found


def _weight_map(folder: Folder) -> dict[str, str]:
    """Of the index: the names of tensors and of their files."""
    index = folder.read_json(INDEX)
    if index is None:
        if folder.exists(_ADAPTER):
            found = f"an adapter ({_ADAPTER}), which has to be merged into its model first"
        elif any(folder.exists(name) for name in _PICKLES):
            found = f"{_PICKLES[0]}, which is a pickle and could run any code when it is read"
        else:
            found = "neither"
        raise ModelError(f"{folder} holds no weights: expected {SINGLE} or {INDEX}, found {found}")
    where, names = folder.path(INDEX), index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(
            f"{where} is not an index of weights: weight_map is {names!r:.80}, expected an object "
            "with the names of tensors and of their files"
        )
    for file in sorted(set(map(str, names.values()))):
        # A name is a file of this folder, never a path out of it.
        plain = bool(file) and file not in (".", "..") and not set(file) & set("/\\\0")
        if not plain or not file.endswith(".safetensors") or not folder.exists(file):
            raise ModelError(
                f"{where} names {file!r:.200}, which is not a safetensors file of the folder"
            )
    return {str(name): str(file) for name, file in names.items()}


def _matched(
    folder: Folder,
    headers: dict[str, list[StoredTensor]],
    wanted: dict[str, torch.nn.Parameter],
    tied: bool,
) -> dict[str, _Source]:
    """For each parameter the tensor that is to fill it; also that of a head that is tied."""
    sources: dict[str, _Source] = {}
    problems: dict[str, list[str]] = {
        kind: [] for kind in ("missing", "unexpected", "repeated", "misshapen", "of another dtype")
    }
    for file, tensors in headers.items():
        for tensor in tensors:
            name = hub_name(tensor.name)
            twin = _EMBEDDING if name == _HEAD and tied else name
            if twin not in wanted:
                problems["unexpected"].append(named(tensor.name))
            elif name in sources:
                first = sources[name]
                problems["repeated"].append(f"{named(tensor.name)} ({file}, also {first.file})")
            else:
                sources[name] = _Source(file, tensor)
                shape = tuple(wanted[twin].shape)
                if tensor.shape != shape:
                    problems["misshapen"].append(
                        f"{tensor.name} is {list(tensor.shape)}, expected {list(shape)}"
                    )
                elif tensor.dtype not in FLOATS:
                    problems["of another dtype"].append(
                        f"{tensor.name} is {tensor.dtype}, expected one of {', '.join(FLOATS)}"
                    )
    problems["missing"] += sorted(set(wanted) - set(sources))
    found = [_sentence(kind, names) for kind, names in problems.items() if names]
    if found:
        raise ModelError(f"{folder}: {'. '.join(found)}")
    return sources


def _sentence(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    verb = "tensor is" if len(names) == 1 else "tensors are"
    return f"{len(names)} {verb} {kind}: {'; '.join(names[:8])}{more}"


def _refuse_quantised(folder: Folder, headers: dict[str, list[StoredTensor]]) -> None:
    for file, tensors in headers.items():
        for tensor in tensors:
            if tensor.name.rpartition(".")[2] in _QUANTISED:
                raise ModelError(
                    f"{folder.path(file)}: the weights are quantised (it holds "
                    f"{named(tensor.name)}), which is not supported: use the unquantised checkpoint"
                )


def _check_index(
    folder: Folder, index: dict[str, str], headers: dict[str, list[StoredTensor]]
) -> None:
    """Raises ModelError unless every tensor of the index is in the file that the index names."""
    held = {tensor.name: file for file, tensors in headers.items() for tensor in tensors}
    for name, file in index.items():
        if held.get(name) != file:
            found = f"{held[name]} has" if name in held else "none of its files has"
            raise ModelError(
                f"{folder.path(INDEX)} looks for {named(name)} in {file}, but {found} it"
            )


def _main_dtype(sources: Sequence[_Source]) -> torch.dtype:
    held = dict.fromkeys(FLOATS, 0)
    for source in sources:
        width = torch.finfo(FLOATS[source.tensor.dtype]).bits // 8
        held[source.tensor.dtype] += (source.tensor.stop - source.tensor.start) // width
    return FLOATS[max(held, key=lambda name: held[name])]


def _check_head(
    folder: Folder, head: _Source, rows: Sequence[tuple[StoredTensor, torch.Tensor]]
) -> None:
    """Raises ModelError unless the stored head is the embedding that it shall share."""
    for stored, embedding in rows:
        flat = embedding.view(-1)
        for _, first, values in read_values(folder, head.file, [stored]):
            same = flat[first : first + len(values)]
            if not torch.equal(values.to(same.device, same.dtype), same):
                raise ModelError(
                    f"{folder.path(head.file)}: {head.tensor.name} differs from {_EMBEDDING}, but "
                    "tie_word_embeddings in config.json says that they are one: set it to false"
                )


def hub_name(name: str) -> str:
    """The name on the hub of a tensor saved from memory by transformers 5.x."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name
