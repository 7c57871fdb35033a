"""Writes random checkpoints in hub format, in several shapes, for tests against the reference."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from mediamill.model.families.qwen2_vl.config import config_from_dict
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.tiny import CHECKPOINT
from mediamill.model.tiny.folder import config_dict

OTHER_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)


@dataclass(frozen=True)
class Shape:
    """A checkpoint to write. `text`, `vision`: keys of config.json that differ from the embedded
    model's.
    layout: "flat" as on the hub in 2024; "both" as 4.5x writes it, flat and text_config; "nested"
        as 5.x does.
    memory_names: the tensors bear the names that 5.x has in memory.
    """

    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    shards: int = 1
    layout: Literal["flat", "both", "nested"] = "flat"
    memory_names: bool = False


SHAPES = {
    "embedded": Shape(),
    "untied, sharded": Shape({"tie_word_embeddings": False}, shards=3),
    "one key-value head": Shape({"num_key_value_heads": 1, "num_hidden_layers": 2}),
    "as many key-value heads": Shape(
        {"num_key_value_heads": 4, "num_hidden_layers": 2}, {"depth": 2}
    ),
    "2B's heads": Shape(
        {
            "hidden_size": 192,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
        {"hidden_size": 192, "embed_dim": 160, "num_heads": 2, "depth": 2},
    ),
    "nested, names of 5.x": Shape(
        {"num_hidden_layers": 2}, layout="nested", memory_names=True, shards=2
    ),
    "flat and nested, of 4.5x": Shape({"num_hidden_layers": 2}, layout="both"),
    "another vision tower": Shape(
        {"num_hidden_layers": 2},
        {"depth": 6, "embed_dim": 96, "num_heads": 3, "mlp_ratio": 2},
    ),
    # Sizes at which the 16 frequencies of base 20 fall into every band of the rule.
    "yarn": Shape(
        {
            "num_hidden_layers": 2,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
                "mrope_section": [4, 6, 6],
            },
        }
    ),
    "linear": Shape(
        {
            "num_hidden_layers": 2,
            "rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [4, 6, 6]},
        },
        layout="both",
    ),
    # The context is so long that the reference never leaves its own frequencies behind.
    "dynamic": Shape(
        {
            "num_hidden_layers": 2,
            "rope_scaling": {"type": "dynamic", "factor": 2.0, "mrope_section": [4, 6, 6]},
        }
    ),
    "llama3": Shape(
        {
            "num_hidden_layers": 2,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 2.0,
                "high_freq_factor": 8.0,
                "original_max_position_embeddings": 128,
                "mrope_section": [4, 6, 6],
            },
        },
        layout="nested",
    ),
    "longrope": Shape(
        {
            "num_hidden_layers": 2,
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0 + 0.05 * i for i in range(16)],
                "long_factor": [1.0 + 0.4 * i for i in range(16)],
                "mrope_section": [4, 6, 6],
            },
        }
    ),
    "sliding window": Shape(
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        }
    ),
}


def write_checkpoint(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """A folder with random weights, well scaled so that greedy steps have clear winners."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in OTHER_FILES:
        shutil.copy(CHECKPOINT / name, folder / name)
    flat = config_dict() | shape.text
    flat["vision_config"] = {**flat["vision_config"], **shape.vision}  # type: ignore[dict-item]
    flat["torch_dtype"] = "float32"
    raw = {"flat": dict, "both": _both, "nested": _nested}[shape.layout](flat)
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = _random_tensors(flat, seed)
    if shape.memory_names:
        tensors = {_memory_name(name): tensor for name, tensor in tensors.items()}
    _save(folder, tensors, shape.shards)
    return folder


def _random_tensors(flat: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    config = config_from_dict(flat, "a test's configuration")
    tensors = {}
    for name, parameter in Qwen2VL(config).named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or "ln_q" in name:
            tensors[name] = 1.0 * name.endswith("weight") + 0.1 * noise
        elif parameter.ndim == 1:
            tensors[name] = 0.1 * noise
        elif "embed_tokens" in name:
            tensors[name] = 0.3 * noise
        else:
            tensors[name] = noise * parameter[0].numel() ** -0.5
    return tensors


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The layout of transformers 5.x: text_config with rope_parameters, and a top-level tie."""
    top = {
        key: flat[key]
        for key in (
            "architectures",
            "model_type",
            "vision_config",
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
            "tie_word_embeddings",
        )
    }
    text = {
        k: v for k, v in flat.items() if k not in top and k not in ("rope_theta", "rope_scaling")
    }
    text["model_type"] = "qwen2_vl_text"
    text["rope_parameters"] = {
        "rope_type": _rope_type(flat),
        "rope_theta": flat["rope_theta"],
        **{k: v for k, v in flat["rope_scaling"].items() if k not in ("type", "rope_type")},
    }
    return {**top, "dtype": "float32", "text_config": text}


def _both(flat: dict[str, Any]) -> dict[str, Any]:
    """The layout of transformers 4.5x: every key of the decoder twice."""
    kind = _rope_type(flat)
    scaling = flat["rope_scaling"] | {"type": kind, "rope_type": kind}
    raw = flat | {"rope_scaling": scaling}
    own = ("architectures", "vision_config", "image_token_id", "video_token_id")
    text = {k: v for k, v in raw.items() if k not in own}
    return raw | {"text_config": text | {"model_type": "qwen2_vl_text"}}


def _rope_type(flat: dict[str, Any]) -> str:
    scaling = flat["rope_scaling"]
    kind = scaling.get("rope_type", scaling.get("type"))
    return "default" if kind == "mrope" else kind


def _memory_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name


def _save(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return
    weight_map = {}
    names = list(tensors)
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        save_file({n: tensors[n] for n in part}, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
