"""Turns a checkpoint's config.json into the numbers that shape the network.

Reads the flat layout of the 2024 hub files, the nested `text_config` of transformers 4.5x, and
`rope_parameters` of 5.x. What it cannot honour it refuses with a sentence, before any weight is
read. It does not know how pictures are resized or how a prompt is written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.errors import ModelError

MRopeRule = Literal["original", "hf5"]


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `hidden_size` is the width of the decoder that it feeds."""

    depth: int = 32
    embed_dim: int = 1280
    num_heads: int = 16
    mlp_ratio: float = 4.0
    in_channels: int = 3
    hidden_size: int = 3584
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values in one patch with both temporal slices: C * T * ph * pw."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    max_position_embeddings: int = 32768
    # The class default of the reference; every published checkpoint says 1e-6.
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Qwen2VLConfig:
    """A whole model: decoder, vision tower, and the token ids that join them."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    dtype: str | None = None
    mrope: MRopeRule = "original"


def load_config(folder: Path, mrope: MRopeRule = "original") -> Qwen2VLConfig:
    """Read `folder`/config.json.

    Raises ModelError, naming the file and key, for a missing or malformed file and for settings
    that this network does not implement.
    """
    path = folder / "config.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    return parse_config(content, str(path), mrope)


def parse_config(content: bytes, where: str, mrope: MRopeRule = "original") -> Qwen2VLConfig:
    """Build a config from the `content` of a config.json; `where` names it in errors."""
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise ModelError(f"{where} cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{where}: found a JSON {type(raw).__name__}, expected an object")
    return config_from_dict(raw, where, mrope)


def config_from_dict(
    raw: Mapping[str, Any], where: str, mrope: MRopeRule = "original"
) -> Qwen2VLConfig:
    """Build a config from the parsed JSON `raw`; `where` names its source in errors."""
    if raw.get("model_type") != "qwen2_vl":
        raise ModelError(f"{where}: model_type is {raw.get('model_type')!r}, expected 'qwen2_vl'")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ModelError(
            f"{where}: the weights are quantised ({method}), which is not supported: use the "
            "unquantised checkpoint"
        )
    # Nested wins over flat: files of 4.5x hold both, and the flat copy may be stale.
    text = {**raw, **(raw.get("text_config") or {})}
    vision = raw.get("vision_config") or {}
    config = Qwen2VLConfig(
        text=_text(text, where, tied=_tied(raw)),
        vision=_vision(vision, text, where),
        image_token_id=raw.get("image_token_id", 151655),
        video_token_id=raw.get("video_token_id", 151656),
        vision_start_token_id=text.get("vision_start_token_id", 151652),
        vision_end_token_id=text.get("vision_end_token_id", 151653),
        dtype=raw.get("dtype") or raw.get("torch_dtype") or text.get("dtype"),
        mrope=mrope,
    )
    _check(config, where)
    return config


def _tied(raw: Mapping[str, Any]) -> bool:
    top = raw.get("tie_word_embeddings")
    nested = (raw.get("text_config") or {}).get("tie_word_embeddings")
    return bool(top if top is not None else nested)


def _text(raw: Mapping[str, Any], where: str, tied: bool) -> TextConfig:
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{where}: hidden_act is {raw['hidden_act']!r}, expected 'silu'")
    if raw.get("use_sliding_window"):
        raise ModelError(
            f"{where}: use_sliding_window is true, which is not supported: every official "
            "checkpoint has false"
        )
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "mrope"):
        raise ModelError(f"{where}: rope type is {kind!r}, expected 'default' or 'mrope'")
    default = TextConfig()
    hidden, heads = _int(raw, "hidden_size", where), _int(raw, "num_attention_heads", where)
    section = tuple(rope.get("mrope_section") or default.mrope_section)
    if len(section) != 3:
        raise ModelError(f"{where}: mrope_section is {list(section)}, expected three sizes")
    return TextConfig(
        vocab_size=_int(raw, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=_int(raw, "intermediate_size", where),
        num_hidden_layers=_int(raw, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        max_position_embeddings=raw.get("max_position_embeddings", default.max_position_embeddings),
        rms_norm_eps=raw.get("rms_norm_eps", default.rms_norm_eps),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or default.rope_theta),
        mrope_section=(section[0], section[1], section[2]),
        tie_word_embeddings=tied,
    )


def _vision(raw: Mapping[str, Any], text: Mapping[str, Any], where: str) -> VisionConfig:
    default = VisionConfig()
    if raw.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise ModelError(
            f"{where}: vision_config.hidden_act is {raw['hidden_act']!r}, expected 'quick_gelu'"
        )
    return VisionConfig(
        depth=raw.get("depth", default.depth),
        embed_dim=raw.get("embed_dim", default.embed_dim),
        num_heads=raw.get("num_heads", default.num_heads),
        mlp_ratio=raw.get("mlp_ratio", default.mlp_ratio),
        # Hub files say in_chans, the 5.x writer in_channels.
        in_channels=raw.get("in_channels", raw.get("in_chans", default.in_channels)),
        hidden_size=raw.get("hidden_size", text["hidden_size"]),
        patch_size=raw.get("patch_size", default.patch_size),
        temporal_patch_size=raw.get("temporal_patch_size", default.temporal_patch_size),
        spatial_merge_size=raw.get("spatial_merge_size", default.spatial_merge_size),
    )


def _int(raw: Mapping[str, Any], key: str, where: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"{where}: {key} is {value!r}, expected a positive integer")
    return value


def _check(config: Qwen2VLConfig, where: str) -> None:
    text, vision = config.text, config.vision
    if text.hidden_size % text.num_attention_heads:
        raise ModelError(
            f"{where}: hidden_size {text.hidden_size} is not divisible by num_attention_heads "
            f"{text.num_attention_heads}"
        )
    if text.num_attention_heads % text.num_key_value_heads:
        raise ModelError(
            f"{where}: num_attention_heads {text.num_attention_heads} is not divisible by "
            f"num_key_value_heads {text.num_key_value_heads}"
        )
    if sum(text.mrope_section) != text.head_dim // 2:
        raise ModelError(
            f"{where}: mrope_section {list(text.mrope_section)} sums to "
            f"{sum(text.mrope_section)}, expected half the head size, {text.head_dim // 2}"
        )
    if vision.embed_dim % vision.num_heads or vision.head_dim % 4:
        raise ModelError(
            f"{where}: vision embed_dim {vision.embed_dim} and num_heads {vision.num_heads} "
            "do not give a head size divisible by 4"
        )
    if vision.hidden_size != text.hidden_size:
        raise ModelError(
            f"{where}: vision_config.hidden_size {vision.hidden_size} differs from the "
            f"decoder's hidden_size {text.hidden_size}"
        )
    if (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size) != (14, 2, 2):
        raise ModelError(
            f"{where}: patch, temporal patch and merge sizes are {vision.patch_size}, "
            f"{vision.temporal_patch_size}, {vision.spatial_merge_size}, expected 14, 2, 2"
        )
